"""The study of the paper's claims: its statistics by hand and beside scipy's, its sets, its report, and all of it at a
tiny size, killed and gone on with."""

import itertools
import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import scipy.stats
import torch

from eagle_model.batch import IGNORE_INDEX
from eagle_model.evaluate.totals import Unit
from eagle_model.files import read_json
from examples.paper_in_small import __main__ as main
from examples.paper_in_small import arms, ask, claims, report, sets
from examples.paper_in_small.claims import Asked, Claim, packed, paired, units, unpacked

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "bench/results/paper-in-small-cpu.json"
COUNTS = sets.Counts(cards=8, short=8, films=4, told=4, pages=8, test_films=3, test_told=2, test_pages=16)
TINY = arms.Size(
    contexts={"base": 256, "stage2": 320, "stage3": 384, "stage4": 512},
    steps={"base": 2, "stage2": 1, "stage3": 1, "stage4": 1},
    tokens_per_step=512,
    most_frames=26,
    asked_frames=(4, 8, 16),
    counts=COUNTS,
    seeds=(0,),
)


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


# -- statistics


def answers(*bits: str, each: int) -> list[dict]:
    """Of each seed."""
    return [{"signs": packed(one, each)} for one in bits]


def test_answers_are_kept_bit_for_bit():
    for bits in ("0", "1", "0001", "10110", "0" * 9 + "1" * 8):
        kept = json.loads(json.dumps(packed(bits, 1)))
        assert unpacked(kept) == [bit == "1" for bit in bits]


def test_a_paired_difference_by_hand():
    """Three films of two questions. Differences: film 0: +1 +1, film 1: 0 +1, film 2: 0 -1; their means 1, 0.5, -0.5.
    27 draws of three films are alike; the ends are percentiles of their means."""
    ours, theirs = answers("111100", each=2), answers("001001", each=2)
    number = paired(units(ours, ["signs"]), units(theirs, ["signs"]))
    assert number.value == pytest.approx(1 / 3)
    assert number.num == 6
    means = sorted(np.mean(draw) for draw in itertools.product((1, 0.5, -0.5), repeat=3))
    low, high = np.percentile(np.repeat(means, 1000), [2.5, 97.5])
    assert (number.low, number.high) == (pytest.approx(low), pytest.approx(high))


def test_seeds_of_a_film_are_drawn_together():
    """The same answers three times over: no more is known than from one seed."""
    bits = ("1101011110", "0101001011")
    once, thrice = (
        paired(units(answers(*[bits[0]] * n, each=2), ["signs"]), units(answers(*[bits[1]] * n, each=2), ["signs"]))
        for n in (1, 3)
    )
    assert thrice[:3] == pytest.approx(once[:3])
    assert (once.num, thrice.num) == (10, 30)


def test_intervals_are_scipys():
    """2,000 questions about 400 films, answers that agree within a film: scipy draws the films' means."""
    chance = np.random.default_rng(0)
    skill = chance.uniform(0.2, 0.9, (400, 1))
    ours = chance.random((400, 5)) < skill + 0.05
    theirs = chance.random((400, 5)) < skill
    bits = ["".join("01"[int(right)] for right in its.ravel()) for its in (ours, theirs)]
    number = paired(units(answers(bits[0], each=5), ["signs"]), units(answers(bits[1], each=5), ["signs"]))
    per_film = ours.mean(axis=1) - theirs.mean(axis=1)
    theirs_interval = scipy.stats.bootstrap(
        (per_film,), np.mean, method="percentile", n_resamples=20_000, rng=np.random.default_rng(1)
    ).confidence_interval
    width = theirs_interval.high - theirs_interval.low
    assert number.value == pytest.approx(per_film.mean())
    assert number.low == pytest.approx(theirs_interval.low, abs=0.08 * width)
    assert number.high == pytest.approx(theirs_interval.high, abs=0.08 * width)


def test_answers_about_other_films_are_refused():
    with pytest.raises(ValueError, match="2 and 4 answers"):
        paired([Unit("a", 1.0)] * 2, [Unit("a", 1.0)] * 4)


@pytest.mark.parametrize(
    ("better", "worse", "verdict"),
    [
        (["1" * 40] * 2, ["0" * 20 + "1" * 20] * 2, "reproduced"),
        (["0" * 20 + "1" * 20] * 2, ["1" * 40] * 2, "contradicted"),
        (["1" * 40] * 2, ["1" * 40] * 2, "not shown"),
        # The mean is far above 0, one seed is below: other seeds might say anything.
        (["1" * 40, "0" * 2 + "1" * 38], ["0" * 40, "1" * 40], "not shown"),
    ],
    ids=["all above", "all below", "equal", "seeds differ"],
)
def test_verdicts(better, worse, verdict):
    claim = Claim(says="", paper="", better=Asked("a", "films"), worse=Asked("b", "films"))
    both = zip(answers(*better, each=2), answers(*worse, each=2), strict=True)
    results = {"answers": [{"a/films/own": a, "b/films/own": b} for a, b in both]}
    assert claim.outcome(results).verdict == verdict


# -- sets


def test_signs_of_a_film_do_not_overlap_and_each_is_seen():
    its = sets.material(held_out=False)
    for seed in range(20):
        chance = np.random.default_rng(seed)
        num_frames = (8, 12, 24, 40, 160)[seed % 5]
        frames, digits = sets.film(chance, its, num_frames)
        assert frames.shape == (num_frames, sets.FRAME_PX, sets.FRAME_PX, 3)
        assert sorted(digits) == sorted(sets.COLOURS)
        for colour in digits:
            is_border = (frames == np.array(sets.COLOURS[colour], np.uint8)).all(axis=3)
            up = np.flatnonzero(is_border.mean(axis=(1, 2)) > 0.1)
            assert len(up) >= (1 if num_frames < sets.LEAST_LONG else 2), (seed, colour)
            assert len(up) <= max(2.9, sets.MOST_UP * num_frames)
            assert (np.diff(up) == 1).all()


def test_held_out_digits_and_pictures_are_unseen():
    train, test = sets.material(held_out=False), sets.material(held_out=True)
    for digit in sets.DIGITS:
        seen = {picture.tobytes() for picture in train.digits[digit]}
        assert seen and not seen & {picture.tobytes() for picture in test.digits[digit]}
    assert train.frames_LYX3.shape == test.frames_LYX3.shape == (132, 360, 320, 3)
    assert not (train.frames_LYX3[0] == test.frames_LYX3[0]).all()


@pytest.mark.parametrize("shape", [*sets.SQUARE_PAGES, *sets.LONG_PAGES])
def test_a_page_holds_every_sign_whole(shape):
    picture, digits = sets.page(np.random.default_rng(0), sets.material(held_out=True), shape)
    assert picture.shape == (shape[1], shape[0], 3)
    for colour in digits:
        is_panel = (picture == np.array(sets.COLOURS[colour], np.uint8)).all(axis=2)
        ys, xs = np.nonzero(is_panel)
        border = (np.ptp(ys) + 1, np.ptp(xs) + 1)
        assert min(border) >= sets.PAGE_SIGN_PX, (colour, border)


def test_a_text_names_one_digit():
    for seed in range(20):
        text, digit = sets.told(np.random.default_rng(seed))
        assert [word for word in text.split() if word in sets.WORD_OF.values()] == [sets.WORD_OF[digit]]


# -- the study


@pytest.fixture(scope="module")
def study(tmp_path_factory) -> Path:
    """A tiny study, lost in the middle of its answers, then gone on with."""
    work = tmp_path_factory.mktemp("study")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(main, "ask", lost_after(3))
        with pytest.raises(Lost):
            main.study(TINY, work, work / "out.json", work / "report.html")
    main.study(TINY, work, work / "out.json", work / "report.html")
    return work


class Lost(Exception):
    pass


def lost_after(number: int):
    calls = itertools.count()

    def ask_or_die(*given):
        if next(calls) == number:
            raise Lost
        return ask.ask(*given)

    return ask_or_die


def test_a_study_that_was_lost_goes_on(study: Path, monkeypatch, capsys):
    """Nothing is trained or asked twice, and the results are those that were kept."""
    before = (study / "out.json").read_text()
    monkeypatch.setattr(main, "ask", lost_after(0))
    monkeypatch.setattr(arms, "Trainer", None)
    monkeypatch.setattr(arms, "Progressive", None)
    main.study(TINY, study, study / "out.json", study / "report.html")
    assert (study / "out.json").read_text() == before
    assert "Claims" in capsys.readouterr().out


def test_its_results_hold_every_answer(study: Path):
    results = read_json(study / "out.json")
    assert results["code"] == main.hash_of_code()
    (runs,), (its,) = results["runs"], results["answers"]
    assert {name: run["steps"] for name, run in runs.items()} == {
        "base": 2, "progressive": 3, "no-ads": 1, "no-iap": 1, "direct": 3
    }  # fmt: skip
    assert set(its) == {asked.key for asked in claims.all_asked(TINY.asked_frames)}
    for key, groups in its.items():
        held_out = key.split("/")[1]
        num = sum(content["num"] for content in groups.values())
        assert num == {"films": 3 * 5, "told": 2 * 6, "pages": 16 * 5}[held_out], key


def test_its_report_shows_every_claim(study: Path):
    page = (study / "report.html").read_text()
    results = read_json(study / "out.json")
    for claim in claims.claims(TINY.asked_frames):
        assert claim.says in page
        assert claim.outcome(results).verdict in page
    assert results["code"] in page and results["machine"]["commit"] in page
    assert page.count("<svg") == 1
    assert not re.search(r'(src|href)="(?!#)', page)  # nothing is loaded from elsewhere


def test_a_report_is_made_of_a_results_file(study: Path, tmp_path: Path, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["", "--out", str(study / "out.json"), "--report", str(tmp_path / "page.html")])
    main.main()
    assert (tmp_path / "page.html").read_text() == (study / "report.html").read_text()
    assert "\n".join(report.markdown(read_json(study / "out.json"))) in capsys.readouterr().out


def test_another_size_is_refused(study: Path):
    with pytest.raises(SystemExit, match="another size"):
        main.study(replace(TINY, tokens_per_step=1024), study, study / "out.json", study / "report.html")


def test_stages_are_the_contexts_that_were_asked_for(study: Path):
    for stage, context in list(TINY.contexts.items())[1:]:
        told = read_json(study / f"seed-0/progressive/{stage}/config.json")["config"]
        assert told["processor"]["sampling"]["context_tokens"] == context
    fixed = read_json(study / "seed-0/no-ads/config.json")["config"]["processor"]["sampling"]
    assert (fixed["ads"], fixed["max_frames"]) == (False, arms.most_fixed_frames(TINY, study / "sets"))
    assert (
        read_json(study / "seed-0/no-iap/config.json")["config"]["processor"]["sampling"]["tiling"] == "closest_ratio"
    )


def test_fixed_frames_are_the_most_that_fit(study: Path):
    """With one more, some row does not."""
    frames = arms.most_fixed_frames(TINY, study / "sets")
    assert 1 <= frames < TINY.most_frames
    processor = ask.load(study / "seed-0/no-ads").processor
    rows = [row for name in ("told", "test-told") for row in ask.read_set(study / "sets" / f"{name}.jsonl")]
    refused = []
    for more in (0, 1):
        limits = arms.sampling(TINY, "stage2", "no-ads", frames + more)
        for row in rows:
            try:
                processor.plan_sample(row, limits=limits)
            except ValueError:
                refused.append(more)
    assert set(refused) == {1}


def test_an_answer_is_right_where_the_likeliest_digit_is(study: Path):
    """Beside the logits of each prompt alone."""
    eagle, processor = ask.load(study / "seed-0/base")
    (sample, *_) = ask.read_set(study / "sets/test-films.jsonl")
    limits = arms.sampling(TINY, "stage4", "base", 1)
    (batch,) = ask.rows_of(processor, [sample], limits)
    options = [processor.tokenizer.encode(f" {digit}").ids[0] for digit in sets.DIGITS]
    right = ask.right_answers(eagle, batch, options)
    answers = [turn.text for turn in sample.turns if turn.role == "assistant"]
    assert len(right) == len(answers) == 5
    plan = processor.plan_sample(sample, limits=limits)
    for k, answer in enumerate(answers):
        tokens = processor.encoder.encode(
            replace(sample, turns=sample.turns[: 2 * k + 1]),
            seen=plan.seen,
            tokens_per_tile=processor.config.tokens_per_tile,
            generation_prompt=True,
        )
        what, digit = answer.split()
        said = torch.tensor(processor.tokenizer.encode(what).ids)
        ignored = torch.full_like(said, IGNORE_INDEX)
        tokens = replace(
            tokens,
            token_ids_T=torch.cat([tokens.token_ids_T, said]),
            labels_T=torch.cat([tokens.labels_T, ignored]),
        )
        row = ask.pack_row([tokens], batch.patches_IPK)
        with torch.inference_mode():
            logits = eagle.lm_head(eagle.hidden(row)[-1:])[0, options]
        assert right[k] == (sets.DIGITS[int(logits.argmax())] == int(digit))


# -- what is published


@pytest.mark.skipif(not RESULTS.exists(), reason="the study's results are not there")
def test_the_published_tables_are_those_of_the_results():
    page = (ROOT / "docs/paper_in_small.md").read_text()
    assert "\n".join(report.markdown(read_json(RESULTS))) in page
