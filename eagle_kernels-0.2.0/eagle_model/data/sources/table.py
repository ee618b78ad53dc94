"""Every data set of the paper's Tables 1 and 11: what it is for, where it comes from, how it is read here.

    for data_set in SETS: print(data_set.name, data_set.uses, data_set.read_as)
    page()                                    # docs/data_sources.md; `eagle data sources` prints the same as text

Names and uses are the paper's (arXiv:2504.15271). It gives no share of a single set, only the totals of STAGES. `seen`
says what the rest rests on: the file and revision that was read, or that nothing was. What was not seen is to be
checked by whoever uses it, licences above all: a set that is open to read may forbid what you do with it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

STAGES = (  # of Table 8: samples
    "Stage 1: ALLaVA, 1.2 M",
    "Stage 1.5: Tables 11a and 11b, 21.6 M",
    "Stages 2 to 4: short (Table 11a) 4.6 M and long (Table 1 and Eagle-Video-110K, never released) 4.6 M",
)
UNKNOWN = "not verified"
_FINE = "HuggingFaceM4/FineVision, subset "  # on a hub; parquet of images and texts
_CLASSES, _ACTIONS, _GROUNDING = "video classification", "temporal action localisation", "video temporal grounding"
_DENSE, _SEGMENTS, _REASONING = "dense video captioning", "temporal segmentation", "temporal reasoning"
_QA, _PAGES, _CAPTIONS, _LONG = "general video QA", "multi-page documents", "video captioning", "long text"


@dataclass(frozen=True, slots=True)
class PaperSet:
    name: str  # as the paper spells it
    table: str  # "1", "11a" or "11b"
    uses: tuple[str, ...]
    home: str = UNKNOWN  # where it comes from
    licence: str = UNKNOWN
    read_as: str = ""  # "--layout NAME"; "as it is"; "": no reader here
    seen: str = ""  # the file and revision that its layout was learned from; "": none


def _video(name: str, uses: Sequence[str], home: str = UNKNOWN, **more: str) -> PaperSet:
    return PaperSet(name, "1", tuple(uses), home, **more)


_ANET = "activitynet/ActivityNet"
_COIN = "coin-dataset/annotations README.md at 4450e37"
_TABLE_1 = (
    _video("Kinetics710", [_CLASSES], "cvdfoundation/kinetics-dataset", read_as="--layout kinetics",
           seen="its README.md at 08be2b7; the CSV's header in readers of it"),
    _video("Something-Something-v2", [_CLASSES], "Qualcomm's developer site", read_as="--layout something_something_v2",
           seen="docstrings of readers of its JSON, at no revision"),
    _video("ActivityNet", [_CLASSES, _ACTIONS, _GROUNDING, _DENSE, _CAPTIONS], _ANET,
           read_as="--layout segments, --layout activitynet_captions", seen=f"the shape that {_COIN} says it has"),
    _video("HACS Segment", [_CLASSES, _ACTIONS, _GROUNDING], "hangzhaomit/HACS-dataset", read_as="--layout segments",
           seen="its README.md at 02b5af4"),
    _video("COIN", [_CLASSES, _ACTIONS, _GROUNDING, _DENSE], "coin-dataset/annotations", licence="research only",
           read_as="--layout segments", seen=_COIN),
    _video("HIREST", [_CLASSES, _ACTIONS, _GROUNDING, _DENSE], "j-min/HiREST"),
    _video("FineAction", [_CLASSES, _ACTIONS, _GROUNDING], read_as="--layout segments"),
    _video("PortraitMode-400", [_CLASSES]),
    _video("Ego4D-MQ", [_ACTIONS, _GROUNDING], "Ego4D, by agreement"),
    _video("Perception-Test", [_ACTIONS, _GROUNDING, _QA], "google-deepmind/perception_test", licence="CC BY 4.0",
           read_as="--layout perception_test", seen="its README.md at 003f5bb"),
    _video("Charade-STA", [_GROUNDING], "jiyanggao/TALL; videos of Charades", read_as="--layout charades_sta",
           seen="file names and the ## in readers of it, at no revision"),
    _video("QVHighlight", [_GROUNDING], "jayleicn/moment_detr", read_as="--layout qvhighlights",
           seen="its data/README.md at 1112fe9"),
    _video("Ego4D-NLQ", [_GROUNDING], "Ego4D, by agreement"),
    _video("Didemo", [_GROUNDING]),
    _video("QueryD", [_GROUNDING]),
    _video("MedVidQA", [_GROUNDING]),
    _video("Youcook2", [_GROUNDING, _DENSE, _CAPTIONS], "youcook2.eecs.umich.edu", read_as="--layout segments",
           seen="readers of its JSON, at no revision"),
    _video("FineVideo", [_GROUNDING, _QA], "HuggingFaceFV/finevideo", licence="Creative Commons, each video's own",
           read_as="--layout finevideo", seen="its card's features, refs/pr/5"),
    _video("EgoExoLearn", [_GROUNDING, _DENSE, _CAPTIONS]),
    _video("ViTT", [_DENSE, _SEGMENTS], "google-research-datasets/Video-Timeline-Tags-ViTT", read_as="--layout vitt",
           seen="its README.md at 21c917a"),
    _video("Breakfast", [_SEGMENTS]),
    _video("ActivityNet-RTL", [_REASONING]),
    _video("TVQA", [_QA], "tvqa.cs.unc.edu; frames, no videos"),
    _video("CLEVRER", [_QA], "clevrer.csail.mit.edu", read_as="--layout clevrer",
           seen="tests of readers of its JSON, at no revision"),
    _video("NextQA", [_QA], "doc-doc/NExT-QA; videos of VidOR", read_as="--layout nextqa",
           seen="its README.md at 005bbc9; the CSV's header in readers of it"),
    _video("SportsQA", [_QA]),
    _video("LLaVA-Video", [_QA, _CAPTIONS], "lmms-lab/LLaVA-Video-178K", read_as="--layout llava_video_178k",
           seen="its file list at 727f4fc; the rows' fields in readers of them"),
    _video("VideoGPT+", [_QA], "MBZUAI/VCGPlus_112K"),
    _video("Oops", [_QA]),
    _video("EgoTaskQA", [_QA]),
    _video("CinePile", [_QA]),
    _video("STAR", [_QA], "csbobby/STAR_Benchmark; videos of Charades", read_as="--layout star",
           seen="its README.md at 2642547; the fields in a schema of it"),
    _video("SlideVQA", [_PAGES], "NTT-hil-insight/SlideVQA", read_as="--layout slidevqa",
           seen="nttmdlab-nlp/SlideVQA README.md at 0d4168a; the hub's page_1 to page_20 in readers of it"),
    _video("DUDE", [_PAGES], "rrc.cvc.uab.es, challenge 23", read_as="--layout dude",
           seen="schemas of readers of its JSON, at no revision"),
    _video("MP-DocVQA", [_PAGES], "rrc.cvc.uab.es, challenge 17", read_as="--layout mp_docvqa",
           seen="schemas of readers of its JSON, at no revision"),
    _video("Shot2story", [_CAPTIONS], "bytedance/Shot2Story"),
    _video("Vript", [_CAPTIONS], "Mutonix/Vript", read_as="--layout vript", seen="mutonix/Vript DATA.md at 0506be5"),
    _video("Momentos", [_CAPTIONS]),
    _video("FunQA", [_CAPTIONS]),
    _video("S-MiT", [_CAPTIONS]),
    _video("LLaVA-Hound", [_CAPTIONS], "ShareGPTVideo/train_video_and_instruction; frames, no videos"),
    _video("Ego4D-HCap", [_CAPTIONS]),
    _video("LongAlign", [_LONG], "THUDM/LongAlign-10k", read_as="as it is",
           seen="THUDM/LongAlign README.md at 03bd201: rows of messages"),
    _video("LongReward", [_LONG], "THUDM/LongReward-10k"),
)  # fmt: skip


def _images(use: str, named: str) -> tuple[PaperSet, ...]:
    """Sets of Table 11a, one a line: the paper's name, and FineVision's subsets of it after ":", where it has any."""
    found = []
    for line in named.strip().splitlines():
        name, _, subsets = (part.strip() for part in line.partition(":"))
        internal = name.endswith("*")
        home = f"{_FINE}{subsets}" if subsets else "NVIDIA's own, not released" if internal else UNKNOWN
        read_as, seen = ("as it is", "the list of FineVision's subsets in a copy of it") if subsets else ("", "")
        found.append(PaperSet(name.rstrip("*"), "11a", (use,), home, UNKNOWN, read_as, seen))
    return tuple(found)


_TABLE_11A = (
    *_images("captioning and knowledge", """
        ShareGPT4o: sharegpt4o
        KVQA
        Movie-Posters
        Google-Landmark: google_landmarks
        WikiArt
        Weather-QA
        Coco-Colors: coco_colors
        music-sheet
        SPARK: spark
        Image-Textualization: image_textualization(filtered)
        SAM-Caption
        Tmdb-Celeb-10k
        PixMo
    """),
    *_images("mathematics", """
        GeoQA+: geoqa+(mathv360k)
        MathQA: text_mathqa
        CLEVR-Math/Super: clevr_math, super_clevr(mathv360k)
        Geometry3K: geo3k, geometry3k(mathv360k)
        MAVIS-math-rule-geo: mavis_math_rule_geo
        MAVIS-math-metagen: mavis_math_metagen
        InterGPS: intergps
        Raven: raven
        GEOS: geos(mathv360k)
        UniGeo: unigeo(mathv360k)
    """),
    *_images("science", """
        AI2D: ai2d_merged
        ScienceQA: scienceqa
        TQA: tqa
        PathVQA: pathvqa
        SciQA
        Textbooks-QA*
        VQA-RAD: vqarad
        VisualWebInstruct: visualwebinstruct(filtered)
    """),
    *_images("charts and tables", """
        ChartQA: chartqa
        MMC-Inst: mmc_instruct
        DVQA: dvqa
        PlotQA: plotqa
        LRV-Instruction: lrv_chart, lrv_normal(filtered)
        TabMWP: tabmwp
        UniChart: Unichart
        Vistext: vistext
        TAT-DQA: tat_dqa
        VQAonBD: vqaonbd
        FigureQA: figureqa
        Chart2Text: chart2text
        RobuT-{Wikisql, SQA, WTQ}: robut_wikisql, robut_sqa, robut_wtq
        MultiHiertt: multihiertt
    """),
    *_images("naive OCR", """
        SynthDoG: synthdog
        MTWI
        LVST
        SROIE: sroie
        FUNSD: funsd
        Latex-Formula: latexformulas
        IAM: iam
        Handwriting-Latex: latex_handwritten
        ArT: art
        CTW: ctw
        ReCTs
        COCO-Text: cocotext
        SVRD: svrd
        Hiertext
        RoadText
        MapText: maptext
        CAPTCHA: captcha
        Est-VQA: est_vqa
        HME-100K: hme100k
        TAL-OCR-ENG: tal_ocr_eng
        TAL-HW-MATH
        IMGUR5K: imgur5k
        ORAND-CAR: orand_car_a
        Invoices-and-Receipts-OCR: invoices_receipts
        Chrome-Writting: chrome_writting
        IIIT5k: iiit5k
        K12-Printing: k12_printing
        Memotion: memotion
        Arxiv2Markdown*
        Handwritten-Mathematical-Expression
        WordArt: wordart
        RenderedText: rendered_text
        Handwriting-Forms: handwriting_forms
    """),
    *_images("OCR QA", """
        DocVQA: docvqa
        InfoVQA: infographic_vqa
        TextVQA: textvqa
        ArxivQA: arxivqa
        ScreencQA: screenqa
        DocReason
        Ureader: ureader_cap, ureader_ie, ureader_kg_processed, ureader_qa_processed
        FinanceQA: sujet_finance
        DocMatrix
        A-OKVQA: a_okvqa, aokvqa
        Diagram-Image-To-Text: diagram_image_to_text
        MapQA: mapqa
        OCRVQA: ocrvqa
        ST-VQA: st_vqa
        SlideVQA: slidevqa
        PDF-VQA: pdfvqa
        SQuAD-VQA
        VQA-CD
        Block-Diagram: blockdiagramcomputerized, blockdiagramhandwritten
        MTVQA
        ColPali
        BenthamQA: bentham
    """),
    *_images("grounding and counting", """
        TallyQA: tallyqa
        OODVQA: oodvqa
        RefCOCO/+/g (en)
        GroundUI: groundui
    """),
    *_images("general VQA", """
        LLaVA-150K: LLaVA_Instruct_150K
        LVIS-Instruct4V: lvis_instruct4v
        Laion-GPT4V: laion_gpt4v
        LLAVAR: llavar_gpt4_20k
        SketchyVQA: sketchyvqa
        OminiAlign-V
        VizWiz: vizwiz(mathv360k)
        IDK: idk
        AlfworldGPT: alfworldgpt
        LNQA: lnqa
        Face-Emotion: face_emotion
        SpatialSense: spatialsense
        Indoor-QA: indoor_qa
        Places365
        MMinstruct
        DriveLM: drivelm
        YesBut: yesbut
        WildVision: wildvision
        LLaVA-Critic-113k
        RLAIF-V
        VQAv2: vqav2
        MMRA: mmra
        KONIQ
        MMDU
        Spot-The-Diff: spot_the_diff
        Hateful-Memes: hateful_memes
        COCO-QA: cocoqa
        NLVR: nlvr2
        Mimic-CGD: mimic_cgd
        Datikz: datikz
        Chinese-Meme: chinesememe
        IconQA: iconqa
        Websight: websight
    """),
    *_images("text alone", """
        Orca: text_openorca
        Orca-Math: text_orcamath
        OpenCodeInterpreter: text_code_feedback
        MathInstruct: text_mathinstruct
        WizardLM: text_wizardlm_evol
        TheoremQA: text_theoremqa
        OpenHermes2.5: text_openhermes_2_5
        NuminaMath-CoT: text_numinamath_cot
        Python-Code-25k: text_pythoncode25k
        Infinity-Instruct
        Python-Code-Instructions-18k-Alpaca: text_pythoncodealpaca
        Ruozhiba: text_ruozhiba
        InfinityMATH: text_infinitymath
        StepDPO: text_mathstepdpo10k
        TableLLM
        UltraInteract-sft
    """),
)  # fmt: skip
_ALLAVA = PaperSet(
    "ALLaVA", "11a", ("general VQA", "stage 1"), "FreedomIntelligence/ALLaVA-4V", UNKNOWN, "as it is",
    "FreedomIntelligence/ALLaVA README.md at 028446d: rows of LLaVA's",
)  # fmt: skip
_TABLE_11B = (
    PaperSet("CC3M", "11b", ("captioning and knowledge",)),
    PaperSet("TextCaps", "11b", ("captioning and knowledge",), f"{_FINE}textcaps", UNKNOWN, "as it is",
             "as of Table 11a"),
    PaperSet(
        "ShareGPT-4V", "11b", ("captioning and knowledge",), "Lin-Chen/ShareGPT4V", UNKNOWN, "as it is",
        "rows of LLaVA's, as others quote them",
    ),
    PaperSet("DenseFusion-1M", "11b", ("captioning and knowledge",), "BAAI/DenseFusion-1M", "CC BY 4.0", "as it is",
             "its file list at b935d5a; the rows' fields were not seen"),
    PaperSet("Object 365", "11b", ("grounding and counting",), f"{_FINE}objects365_qa", UNKNOWN, "as it is",
             "as of Table 11a"),
    PaperSet("OpenMathInstruct", "11b", ("text alone",), f"{_FINE}text_OpenMathInstruct-2", UNKNOWN, "as it is",
             "as of Table 11a"),
)  # fmt: skip
SETS = (*_TABLE_1, *_TABLE_11A, _ALLAVA, *_TABLE_11B)
BESIDE = (  # sets that the paper's own data were selected from, section on Eagle-Video-110K
    "VidChapters (--layout vidchapters; antoyang/VidChapters preproc/chapters_to_dvc.py at 1ba1848)",
    "MiraData", "InternVid-10M", "Panda-70M", "Vript (--layout vript)", "Shot2Story", "ViTT (--layout vitt)",
    "WebVid-10M",
)  # fmt: skip


def page() -> str:
    """The table as Markdown: docs/data_sources.md."""
    lines = [
        "# The paper's data, set by set",
        "",
        "Eagle 2.5 names its data sets in Tables 1 and 11 and released none of them, nor how they were put together.",
        "This is every one of them, and how `eagle data convert IN OUT` reads it: with a `--layout`, or as it is. The",
        "page is made by `eagle data sources --markdown`; a test holds it to `eagle_model/data/sources/table.py`.",
        "",
        "The paper gives no share of a single set. Its totals:",
        "",
        *(f"- {stage}." for stage in STAGES),
        "",
        'The column "seen" says what was read to learn a layout, by repository and revision. Where it is empty, or',
        "says so, the layout is written down from general knowledge: `eagle data check` tells whether your copy has",
        'it. What a "not verified" licence allows, read where you get the set. A converter asks its questions in words',
        "of its own: the paper's prompts were not published.",
        "",
        f"Eagle-Video-110K was made of clips selected from: {'; '.join(BESIDE)}.",
    ]
    for table, title in (
        ("1", "video, documents, long text"),
        ("11a", "images, stages 1.5 to 4"),
        ("11b", "stage 1.5 alone"),
    ):
        lines += [
            "",
            f"## Table {table}: {title}",
            "",
            "| set | for | from | licence | read | seen |",
            "|---|---|---|---|---|---|",
        ]
        for s in SETS:
            if s.table == table:
                cells = (s.name, ", ".join(s.uses), s.home, s.licence, s.read_as or "no reader", s.seen)
                lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(lines) + "\n"


def listing(sets: Sequence[PaperSet] = SETS) -> list[str]:
    """The table as text, a line a set."""
    width = max((len(s.name) for s in sets), default=0)
    return [f"{s.table:>3}  {s.name:{width}}  {s.read_as or '-'}  ({', '.join(s.uses)}; from {s.home})" for s in sets]
