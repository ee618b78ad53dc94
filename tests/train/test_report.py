"""The report shows the pixels and tokens of the batch itself, escapes all text, and needs no other file."""

import base64
import json
import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from markupsafe import escape
from PIL import Image

from eagle_model.batch import IGNORE_INDEX, PackedBatch
from eagle_model.train import checkpoint, report
from eagle_model.train.config import write_config
from eagle_model.train.metrics import MetricsLog
from eagle_model.train.recipes import tiny
from eagle_model.train.report import save_samples, write_report
from tests.train.test_metrics import metrics

MEAN, STD = (0.5, 0.4, 0.3), (0.5, 0.25, 0.3)


def batch_of(labels: list[list[bool]], tiles: list[int]) -> PackedBatch:
    """Documents of 2 tokens a tile, then text; tile i has the brightness i / 5."""
    token_ids, shifted, visual_rows, positions, ends = [], [], [], [], [0]
    for learned, num_tiles in zip(labels, tiles, strict=True):
        visual_rows += range(ends[-1], ends[-1] + 2 * num_tiles)
        token_ids += [0] * (2 * num_tiles) + list(range(65, 65 + len(learned)))
        flags = [False] * (2 * num_tiles) + learned
        shifted += [65 if follows else IGNORE_INDEX for follows in [*flags[1:], False]]
        positions += range(len(flags))
        ends.append(len(token_ids))
    patches = torch.stack([torch.full((16, 147), i / 5 * 2 - 1) for i in range(sum(tiles))])
    return PackedBatch(
        token_ids_T=torch.tensor(token_ids),
        labels_T=torch.tensor(shifted),
        positions_T=torch.tensor(positions, dtype=torch.int32),
        cu_seqlens=torch.tensor(ends, dtype=torch.int32),
        patches_IPK=patches,
        visual_rows_N=torch.tensor(visual_rows),
        sample_ids=tuple(f"sample {i}" for i in range(len(tiles))),
    )


def save(folder, *batches):
    def decode(ids):
        return "".join(map(chr, ids))

    save_samples(folder, batches, decode=decode, patch_px=7, mean=(0.5,) * 3, std=(0.5,) * 3)
    return json.loads((folder / "samples.json").read_text())


def test_of_rows_that_several_ranks_share_own_tiles_are_shown(tmp_path):
    """Tiles 1 to 3 of four are here: the last of the first document, and two of the second."""
    whole = batch_of([[True], [True]], [2, 3])
    part = replace(whole, patches_IPK=whole.patches_IPK[1:4], tiles=(1, 4))
    decode = str
    save_samples(tmp_path, [part], decode=decode, patch_px=7, mean=(0.5,) * 3, std=(0.5,) * 3, tokens_per_tile=2)
    samples = json.loads((tmp_path / "samples.json").read_text())
    assert [s["num_tiles"] for s in samples] == [2, 3]
    levels = [[int(np.asarray(Image.open(tmp_path / name))[0, 0, 0]) for name in s["tiles"]] for s in samples]
    all_levels = save(tmp_path / "whole", whole)
    want = [[int(np.asarray(Image.open(tmp_path / "whole" / n))[0, 0, 0]) for n in s["tiles"]] for s in all_levels]
    assert levels == [want[0][1:], want[1][:2]]


def test_samples_are_cut_at_their_own_documents(tmp_path):
    samples = save(tmp_path, batch_of([[False, False, True, True], [True], [False, True, False]], [1, 0, 3]))
    assert [s["id"] for s in samples] == ["sample 0", "sample 1", "sample 2"]
    assert samples[0]["text"] == [["visual", "[2 visual tokens]"], ["given", "AB"], ["learned", "CD"]]
    assert samples[1]["text"] == [["given", "A"]]  # nothing stands before it that could predict it
    assert samples[2]["text"] == [["visual", "[6 visual tokens]"], ["given", "A"], ["learned", "B"], ["given", "C"]]
    assert [s["num_tiles"] for s in samples] == [1, 0, 3]
    levels = [[np.asarray(Image.open(tmp_path / name)) for name in s["tiles"]] for s in samples]
    assert [[int(tile[0, 0, 0]) for tile in tiles] for tiles in levels] == [[0], [], [51, 102, 153]]
    assert levels[2][0].shape == (28, 28, 3)


def test_a_row_of_text_alone(tmp_path):
    batch = batch_of([[False, True]], [1])
    rows = torch.empty(0, dtype=torch.int64)
    (sample,) = save(tmp_path, PackedBatch(**{
        **{name: getattr(batch, name) for name in PackedBatch.__slots__},
        "patches_IPK": batch.patches_IPK[:0],
        "visual_rows_N": rows,
    }))  # fmt: skip
    assert sample["tiles"] == []


def test_only_the_first_are_shown(tmp_path):
    many = batch_of([[True]] * 5, [1] * 5)
    assert len(save(tmp_path / "a", many, many)) == report.MAX_SAMPLES
    (sample,) = save(tmp_path / "b", batch_of([[True]], [report.MAX_TILES + 4]))
    assert len(sample["tiles"]) == report.MAX_TILES
    assert sample["num_tiles"] == report.MAX_TILES + 4


def make_run(folder, *, steps=3):
    folder.mkdir()
    (folder / "run.json").write_text(json.dumps({"run": "abc"}))
    write_config(folder / "config.json", replace(tiny(), model="<b>bold</b>"))
    log = MetricsLog(folder / "metrics.jsonl", steps_done=0)
    for step in range(1, steps + 1):
        log.write(metrics(step, loss=4.0 / step))
    log.close()
    return folder


def test_report_holds_everything_escaped(tmp_path):
    run = make_run(tmp_path / "run <1>")
    batch = batch_of([[False, True]], [1])
    evil = PackedBatch(**{
        **{name: getattr(batch, name) for name in PackedBatch.__slots__},
        "sample_ids": ("<script>alert(1)</script>",),
    })  # fmt: skip
    save_samples(run / "samples", [evil], decode=lambda ids: "<img src=x>", patch_px=7, mean=(0.5,) * 3, std=(0.5,) * 3)
    (run / "skipped.json").write_text(json.dumps([["bad & worse", "why <not>"]]))
    checkpoint.save(run / "checkpoints", 2, "abc", lambda folder: (folder / "a").write_bytes(bytes(1 << 20)))
    checkpoint.keep_best(run / "checkpoints", 2)
    path = write_report(run)
    page = path.read_text()
    assert path == run / "report.html"
    assert "<script>" not in page
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page
    assert "<img src=x>" not in page
    assert "<td>bad &amp; worse</td><td>why &lt;not&gt;</td>" in page
    assert "&lt;b&gt;bold&lt;/b&gt;" in page
    assert "<th>step-000002</th><td>1.0 MiB</td>" in page
    assert "<th>best-000002</th><td>1.0 MiB</td>" in page
    assert "<th>epoch</th><td>1</td>" in page
    assert "4.0000 and 1.3333" in page
    assert page.count('class="curve"') == 4
    assert page.count('class="tile"') == 1
    assert "<th>optimizer.learning_rate</th><td>0.001</td>" in page


def test_report_of_a_run_that_has_just_begun(tmp_path):
    page = write_report(make_run(tmp_path / "run", steps=0)).read_text()
    for text in ("No step is done yet.", "None were saved.", "None yet.", "None."):
        assert text in page


@pytest.mark.parametrize(
    ("name", "damage", "message"),
    [
        ("run.json", lambda p: p.unlink(), None),  # nothing of it is shown
        ("config.json", lambda p: p.unlink(), r"config\.json does not exist"),
        ("config.json", lambda p: p.write_text("{"), r"config\.json is not JSON"),
        ("metrics.jsonl", lambda p: p.write_text("no metrics\n" + p.read_text()), r"metrics\.jsonl:1: is no line"),
        ("metrics.jsonl", lambda p: (p.unlink(), p.mkdir()), r"Is a directory \(.*metrics\.jsonl\)"),
        ("samples/samples.json", lambda p: p.write_text("["), r"samples\.json is not JSON"),
        ("samples/samples.json", lambda p: p.write_text("3"), r"samples\.json holds no samples as a run writes them"),
        (
            "samples/samples.json",
            lambda p: p.write_text('[{"id": 1}]'),
            r"samples\.json holds no samples as a run writes them",
        ),
        ("samples/samples.json", lambda p: edit(p, tiles=["../../../secret.png"]), r"names \.\./\.\./\.\./secret\.png"),
        ("samples/sample-0-tile-00.png", lambda p: p.unlink(), r"names sample-0-tile-00\.png; needs a PNG file"),
        ("skipped.json", lambda p: p.write_text("{]"), r"skipped\.json is not JSON"),
        (
            "skipped.json",
            lambda p: p.write_text('[["only an id"]]'),
            r"skipped\.json holds no list of samples and reasons",
        ),
        ("skipped.json", lambda p: p.write_text("7"), r"skipped\.json holds no list of samples and reasons"),
        ("skipped.json", lambda p: p.write_text("[0.5]"), r"skipped\.json holds no list of samples and reasons"),
        ("skipped.json", lambda p: (p.unlink(), p.mkdir()), r"^[^:]*skipped\.json is no file\.$"),
        ("config.json", lambda p: (p.unlink(), p.mkdir()), r"config\.json is a folder; needs the file"),
        ("samples/samples.json", lambda p: edit(p, text=[0.5]), r"samples\.json holds no samples as a run writes"),
    ],
)
def test_a_damaged_file_is_named_and_the_rest_is_shown(tmp_path, name, damage, message):
    run = make_run(tmp_path / "run")
    (tmp_path / "secret.png").write_bytes(b"secret")
    save(run / "samples", batch_of([[False, True]], [1]))
    (run / "skipped.json").write_text('[["a", "why"]]')
    damage(run / name)
    said: list[str] = []
    page = write_report(run, said.append).read_text()
    if message is None:
        assert said == [] and "Damaged" not in page
    else:
        assert len(said) == 1 and re.search(message, said[0]), said
        assert f"<strong>Damaged:</strong> {escape(said[0])}" in page
    shown = {
        "config.json": "<th>optimizer.learning_rate</th>",
        "metrics.jsonl": "<th>loss, first and last</th>",
        "samples": 'class="tile"',
        "skipped.json": "<td>why</td>",
    }
    lost = "" if message is None or "is no line" in message else name.partition("/")[0]
    assert [part for part in shown if shown[part] not in page] == [part for part in shown if part == lost]
    assert base64.b64encode(b"secret").decode() not in page


def edit(samples, **change):
    (sample,) = json.loads(samples.read_text())
    samples.write_text(json.dumps([sample | change]))


def test_many_skipped_samples_leave_a_page_that_opens(tmp_path):
    run = make_run(tmp_path / "run")
    (run / "skipped.json").write_text(json.dumps([["a", "why"]] * 5000))
    page = write_report(run).read_text()
    assert "<p>5000</p>" in page
    assert page.count("<td>why</td>") == report.MAX_SKIPPED


def test_a_folder_without_a_run_is_an_error(tmp_path):
    with pytest.raises(
        ValueError, match=r"holds no run: run\.json is missing\. Give the folder that `eagle train` wrote"
    ):
        write_report(tmp_path)


def test_a_full_run_shows_all_that_it_knows(tmp_path):
    run = make_run(tmp_path / "run", steps=0)
    made_by = {"date": "2026-01-02 03:04:05", "machine": "node7", "torch": "2.13.0", "commit": "abcdef1234", "x": "y"}
    (run / "run.json").write_text(json.dumps({"run": "abc", "made_by": made_by}))
    log = MetricsLog(run / "metrics.jsonl", steps_done=0)
    for step in range(1, 9):
        names = {"pages": 2.0, "<films>": 1.0} if step > 2 else {"pages": 4.0}
        log.write(replace(
            metrics(step),
            grad_norms={"vision": 0.5 / step, "llm": 1.0},
            dataset_losses=names,
            dataset_tokens=dict.fromkeys(names, 10),
            model_flops=10**12, mfu=0.4, padding_share=0.05, truncation_share=0.25, peak_device_bytes=3 << 30,
        ))  # fmt: skip
    log.close()
    lines = [{"step": s, "loss": loss} for s, loss in ((2, 3.5), (4, None), (8, 2.5))]
    (run / "validation.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    line = {"step": 4, "id": "q1", "asked": "Which <b>?", "answer": "<i>red</i>", "expected": "blue"}
    (run / "answers.jsonl").write_text(
        json.dumps(line) + "\n" + json.dumps(line | {"step": 8, "answer": "blue"}) + "\n"
    )
    page = write_report(run).read_text()
    titles = re.findall("<h2>(.*?)</h2>", page)
    for title in ("Model FLOPs utilization", "Gradient norm by part", "Loss by data set", "Held-out loss", "Answers"):
        assert title in titles
    assert '<p class="about">2026-01-02 03:04:05; node7; torch 2.13.0; commit abcdef1234</p>' in page
    assert "<th>pages</th><td>2.5000 over 80 tokens</td>" in page
    assert "<th>&lt;films&gt;</th><td>1.0000 over 60 tokens</td>" in page
    assert "<h3>q1: Which &lt;b&gt;?</h3>" in page
    assert "<th>step 4</th><td>&lt;i&gt;red&lt;/i&gt;</td>" in page and "<th>should be</th><td>blue</td>" in page
    assert "<th>largest device memory</th><td>3,072 MiB</td>" in page
    assert "<th>samples shown in part</th><td>25.0%</td>" in page
    assert not re.search(r"(src|href)=.(?!data:)", page)  # no other file, no address


@pytest.mark.parametrize("name", ["validation.jsonl", "answers.jsonl"])
def test_a_damaged_log_is_named(tmp_path, name):
    run = make_run(tmp_path / "run")
    (run / name).write_text("3\n")
    said: list[str] = []
    page = write_report(run, said.append).read_text()
    assert len(said) == 1 and f"{name}:1: is no line of a log" in said[0]
    assert "<th>loss, first and last</th>" in page


def test_a_smoothed_curve_is_a_mean_of_what_was():
    assert report.smoothed([3.0] * 5, 4) == pytest.approx([3.0] * 5)
    assert report.smoothed([1.0, 2.0, 4.0], 1) == [1.0, 2.0, 4.0]
    weights = [0.75**2, 0.75, 1.0]
    want = sum(w * v for w, v in zip(weights, (1.0, 2.0, 4.0), strict=True)) / sum(weights)
    assert report.smoothed([1.0, 2.0, 4.0], 4)[-1] == pytest.approx(want)
