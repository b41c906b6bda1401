"""Small files in published forms, and the questions that are to come of them: documents, sounds, films and places."""

from __future__ import annotations

import base64

from published_forms import LETTER, SHORT, Asked, Form, document, held, lines, png, separated, table, wav

FORMS = {}

FORMS["ocrbench"] = Form(
    {
        "ocrbench/OCRBench.json": document(
            [
                {"dataset_name": "IIIT5K", "id": 0, "type": "Regular Text Recognition", "answers": ["CENTRE"]}
                | {"question": "what is written in the image?", "image_path": "IIIT5K/1009_2.png"},
                {"dataset_name": "ESTVQA", "id": 1, "type": "Scene Text-centric VQA", "answers": "03/26/84"}
                | {"question": "Which day?", "image_path": "ESTVQA/2.png"},
            ]
        ),
        "ocrbench/OCRBench_Images/IIIT5K/1009_2.png": png(10),
        "ocrbench/OCRBench_Images/ESTVQA/2.png": png(11),
    },
    [
        Asked("0", "what is written in the image?", ("CENTRE",), png(10), category="Regular Text Recognition"),
        Asked("1", "Which day?", ("03/26/84",), png(11), category="Scene Text-centric VQA"),
    ],
)
FORMS["ocrbench_parquet"] = Form(
    {
        "ocrbench/data/test-00000-of-00001.parquet": table(
            [
                {"dataset": "IIIT5K", "question": "what is written in the image?", "answer": ["CENTRE"]}
                | {"question_type": "Regular Text Recognition", "image": held(10)}
            ]
        )
    },
    FORMS["ocrbench"].asked[:1],
)

PAGE = {"questionId": 49153, "question": "What is the ‘actual’ value?", "answers": ["0.28", ".28"], "docId": 14465}
FORMS["docvqa"] = Form(
    {
        "docvqa/val_v1.0_withQT.json": document({"data": [PAGE | {"image": "documents/pybv0228_81.png"}]}),
        "docvqa/documents/pybv0228_81.png": png(12),
    },
    [Asked("49153", "What is the ‘actual’ value?" + SHORT, ("0.28", ".28"), png(12))],
)
FORMS["docvqa_parquet"] = Form(
    {"docvqa/DocVQA/validation-00000-of-00006.parquet": table([PAGE | {"questionId": "49153", "image": held(12)}])},
    FORMS["docvqa"].asked,
)

FORMS["chartqa"] = Form(
    {
        "chartqa/test/test_human.json": document([{"imgname": "1.png", "query": "How many?", "label": "14"}]),
        "chartqa/test/test_augmented.json": document([{"imgname": "2.png", "query": "What share?", "label": "57.5"}]),
        "chartqa/test/png/1.png": png(13),
        "chartqa/test/png/2.png": png(14),
    },
    [
        Asked("human-0", "How many?" + SHORT, ("14",), png(13), category="human"),
        Asked("augmented-1", "What share?" + SHORT, ("57.5",), png(14), category="augmented"),
    ],
)
FORMS["chartqa_parquet"] = Form(
    {
        "chartqa/data/test-00000-of-00001.parquet": table(
            [{"type": "human_test", "question": "How many?", "answer": "14", "image": held(13)}]
        )
    },
    [Asked("test-00000-of-00001-0", "How many?" + SHORT, ("14",), png(13), category="human_test")],
)
FORMS["ai2d"] = Form(
    {
        "ai2d/data/test-00000-of-00001.parquet": table(
            [{"question": "What is B?", "options": ["face", "ears", "nose"], "answer": "2", "image": held(15)}]
        )
    },
    [Asked("0", "What is B?\nA. face\nB. ears\nC. nose" + LETTER, ("nose",), png(15), ("face", "ears", "nose"))],
)

SEED = {"choice_a": "One", "choice_b": "Two", "choice_c": "Three", "choice_d": "Four", "answer": "C"}
TOWELS = SEED | {"question": "How many towels?", "question_id": "101669", "question_type_id": 5, "data_type": "image"}
FORMS["seed"] = Form(
    {
        "seed/SEED-Bench.json": document(
            {
                "questions": [
                    TOWELS | {"data_id": "1454426_2591111986"},
                    TOWELS | {"question_id": "v", "data_type": "video", "data_id": "1.webm", "segment": [1, 2]},
                ],
                "question_type": {"Instance Counting": 5},
            }
        ),
        "seed/SEED-Bench-image/1454426_2591111986": png(16),
    },
    [
        Asked(
            "101669", "How many towels?\nA. One\nB. Two\nC. Three\nD. Four" + LETTER, ("Three",), png(16),
            ("One", "Two", "Three", "Four"), "5",
        )
    ],
)  # fmt: skip
FORMS["seed_parquet"] = Form(
    {
        "seed/data/test-00000-of-00056.parquet": table(
            [
                TOWELS | {"image": [held(16)]},
                TOWELS | {"question_id": "v", "data_type": "video", "image": [held(1)] * 8},
            ]
        )
    },
    FORMS["seed"].asked,
)

MOUTH = {"split": "val", "image_id": 461751, "question_id": "22jbM6gDxdaMaunuzgrsBB", "question": "What is in it?"}
CIGARETTE = MOUTH | {
    "choices": ["toothpick", "cigarette"],
    "correct_choice_idx": 1,
    "direct_answers": ["cigarette"] * 10,
}
KNOWN = CIGARETTE | {"difficult_direct_answer": False, "rationales": ["He smokes."]}
OUTSIDE = {
    "aokvqa/aokvqa_v1p0_val.json": document([KNOWN, KNOWN | {"question_id": "x", "difficult_direct_answer": True}]),
    "aokvqa/val2017/000000461751.jpg": png(17),
}
FORMS["aokvqa_choice"] = Form(
    OUTSIDE,
    [
        Asked(name, "What is in it?\nA. toothpick\nB. cigarette" + LETTER, ("cigarette",), png(17), choices)
        for name in (MOUTH["question_id"], "x")
        for choices in (("toothpick", "cigarette"),)
    ],
)
FORMS["aokvqa_direct"] = Form(
    OUTSIDE, [Asked(MOUTH["question_id"], "What is in it?" + SHORT, ("cigarette",) * 10, png(17))]
)

PATHS = table(
    [
        {"image": held(18), "question": "what is seen?", "answer": "Liver"},
        {"image": held(18), "question": "is it normal?", "answer": "no"},
    ]
)
FORMS["pathvqa"] = Form(
    {"pathvqa/data/test-00000-of-00003.parquet": PATHS},
    [Asked("0", "what is seen?", ("Liver",), png(18)), Asked("1", "is it normal?", ("no",), png(18))],
)
FORMS["pathvqa_closed"] = Form(FORMS["pathvqa"].files, FORMS["pathvqa"].asked[1:])
LUNG = {"qid": 0, "image_name": "synpic54610.jpg", "image_organ": "CHEST", "question": "How many?", "answer": 2}
FORMS["vqa_rad"] = Form(
    {
        "vqa_rad/VQA_RAD Dataset Public.json": document(
            [
                LUNG | {"answer_type": "CLOSED ", "phrase_type": "test_freeform"},
                LUNG | {"qid": 1, "answer_type": "OPEN", "phrase_type": "freeform"},
                LUNG | {"qid": 2, "answer_type": "OPEN", "phrase_type": "test_para", "answer": "Aorta"},
            ]
        ),
        "vqa_rad/VQA_RAD Image Folder/synpic54610.jpg": png(19),
    },
    [
        Asked("0", "How many?", ("2",), png(19), category="CLOSED"),
        Asked("2", "How many?", ("Aorta",), png(19), category="OPEN"),
    ],
)
FORMS["vqa_rad_parquet"] = Form(
    {
        "vqa_rad/data/test-00000-of-00001.parquet": table(
            [{"image": held(19), "question": "How many?", "answer": "two"}]
        )
    },
    [Asked("0", "How many?", ("two",), png(19))],
)

ABILITIES = (
    "Visual_Reasoning", "Visual_Perception", "Visual_Knowledge_Acquisition", "Visual_Commonsense",
    "Object_Hallucination",
)  # fmt: skip
FORMS["tiny_lvlm"] = Form(
    {
        f"tiny_lvlm/updated_datasets/{ability}/{name}": held_there
        for number, ability in enumerate(ABILITIES)
        for name, held_there in (
            ("dataset.json", document([{"image_path": "00.png", "question": "Which?", "gt_answers": ["a", "b"]}])),
            ("00.png", png(20 + number)),
        )
    },
    [
        Asked(f"{ability}-{number}", "Which?", ("a", "b"), png(20 + number), category=f"{ability}/all")
        for number, ability in enumerate(ABILITIES)
    ],
)

HEARD = "Is water running?"
WORD = "\nAnswer the question using a single word only."
FORMS["clotho_aqa"] = Form(
    {
        "clotho_aqa/clotho_aqa_test.csv": separated(
            ["file_name", "QuestionText", "answer", "confidence"],
            [["River, near.wav", HEARD, answer, "yes"] for answer in ("yes", "no", "yes")]
            + [["River, near.wav", "Where?", "outdoors", "maybe"]],
        ),
        "clotho_aqa/audio_files/River, near.wav": wav(1),
    },
    [
        Asked(f"River, near.wav {HEARD}", HEARD + WORD, ("yes", "no", "yes"), wav(1), kind="audio"),
        Asked("River, near.wav Where?", "Where?" + WORD, ("outdoors",), wav(1), kind="audio"),
    ],
)
FORMS["clotho_aqa_parquet"] = Form(
    {
        "clotho_aqa/clotho_aqa/clotho_aqa_test_filtered-00000-of-00006.parquet": table(
            [{"audio": {"bytes": wav(1), "path": "River.wav"}, "question": HEARD, "answer": "yes"}]
        )
    },
    [Asked("0", HEARD + WORD, ("yes",), wav(1), kind="audio")],
)
CAPTIONS = ("A man walks.", "Someone, who walks.", "Steps.", "Walking.", "He walks.")
SAY = "Describe what is heard in one sentence."
FORMS["clotho_caption"] = Form(
    {
        "clotho/clotho_captions_evaluation.csv": separated(
            ["file_name", *(f"caption_{number}" for number in range(1, 6))], [["Walk.wav", *CAPTIONS]]
        ),
        "clotho/evaluation/Walk.wav": wav(2),
    },
    [Asked("Walk.wav", SAY, CAPTIONS, wav(2), kind="audio")],
)
FORMS["audiocaps"] = Form(
    {
        "audiocaps/test.csv": separated(
            ["audiocap_id", "youtube_id", "start_time", "caption"],
            [[103549 + number, "7fmOlUlwoNg", 20, caption] for number, caption in enumerate(CAPTIONS)],
        ),
        "audiocaps/test/7fmOlUlwoNg_20.wav": wav(3),
    },
    [Asked("7fmOlUlwoNg_20", SAY, CAPTIONS, wav(3), kind="audio")],
)
READ = {"article": "Once.", "question": "When?", "options": ["Now", "Once", "Never", "Soon"], "answer": "B"}
FORMS["race_audio"] = Form(
    {
        f"race_audio/{level}/test-00000-of-00001.parquet": table([READ | {"example_id": f"{level}1.txt"}])
        for level in ("middle", "high")
    }
    | {f"race_audio/speech/{level}/{level}1.txt.wav": wav(4) for level in ("middle", "high")},
    [
        Asked(
            f"{level}-{number}", "When?\nA. Now\nB. Once\nC. Never\nD. Soon" + LETTER, ("Once",), wav(4),
            ("Now", "Once", "Never", "Soon"), level, kind="speech",
        )
        for number, level in enumerate(("middle", "high"))
    ],
)  # fmt: skip

FORMS["msvd_qa"] = Form(
    {
        "msvd_qa/test_qa.json": document(
            [{"answer": "someone", "id": 37461, "question": "who is it?", "video_id": 1301}]
        ),
        "msvd_qa/video/vid1301.avi": b"film",
    },
    [Asked("37461", "who is it?" + SHORT, ("someone",), b"film", kind="video")],
)
FORMS["activitynet_qa"] = Form(
    {
        "activitynet_qa/test_q.json": document(
            [{"video_name": "1QIUV7WYKXg", "question": "is the athlete wearing trousers", "question_id": "v_1QI_3"}]
        ),
        "activitynet_qa/test_a.json": document([{"answer": "yes", "type": 3, "question_id": "v_1QI_3"}]),
        "activitynet_qa/video/v_1QIUV7WYKXg.mkv": b"film",
    },
    [Asked("v_1QI_3", "is the athlete wearing trousers?" + SHORT, ("yes",), b"film", category="3", kind="video")],
)

BOY = "Please provide the bounding box coordinate of the region this sentence describes: "
SEEN = "data/coco/train2014/COCO_train2014_000000581857.jpg"
FORMS["refcoco"] = Form(
    {
        f"refcoco/refcoco_{split}.jsonl": lines(
            [{"image": SEEN, "sent": f"{split} boy", "bbox": [10.0, 5.0, 30.0, 45.0], "height": 50, "width": 40}]
        )
        for split in ("val", "testA", "testB")
    }
    | {f"refcoco/{SEEN}": png(30, (40, 50))},
    [
        Asked(f"{split}-{n}", f"{BOY}{split} boy", ("[0.2500, 0.1000, 0.7500, 0.9000]",), png(30, (40, 50)), (), split)
        for n, split in enumerate(("val", "testA", "testB"))
    ],
)
FORMS["refcoco_parquet"] = Form(
    {
        f"refcoco/data/{split}-00000-of-00001.parquet": table(
            [
                {"question_id": "469306", "image": {"bytes": png(30, (40, 50))}, "answer": ["boy", "the left one"]}
                | {"question": "Describe the region.", "bbox": [10.0, 5.0, 20.0, 40.0], "file_name": "x.jpg"}
            ]
        )
        for split in ("val", "testA", "testB")
    },
    [
        Asked(f"{split}-{n}-{m}", BOY + text, ("[0.2500, 0.1000, 0.7500, 0.9000]",), png(30, (40, 50)), (), split)
        for n, split in enumerate(("val", "testA", "testB"))
        for m, text in enumerate(("boy", "the left one"))
    ],
)

SETS = ("LAIONEval4000", "TMDBEval500", "OpenLibraryEval500")
FORMS["mario_eval"] = Form(
    {f"mario_eval/{name}/{name}.txt": b"A sign of 'open now' and 'in'\nNo words here\n" for name in SETS},
    [
        Asked(f"{name}-{2 * n}", "Generate an image of A sign of 'open now' and 'in'", ("open now in",), None, (), name)
        for n, name in enumerate(SETS)
    ],
)  # fmt: skip

WORLD = ["index", "image", "question", "A", "B", "C", "D", "answer", "category"]
WHICH_SHAPE = "Which\nshape?\nA. a round\nB. a square" + LETTER
WHICH_NOW = "Which now?\nA. red\nB. green\nC. blue" + LETTER
SHAPE = base64.b64encode(png(31)).decode()
FORMS["vlmeval_choice"] = Form(
    {
        "vlmeval/choice.tsv": separated(
            WORLD,
            [
                [7, SHAPE, "Which\nshape?", "a round", "a square", "", "", "B", "shapes"],
                [8, "7", "Which now?", "red", "green", "blue", "nan", "C", "colours"],
            ],
            "\t",
        )
    },
    [
        Asked("7", WHICH_SHAPE, ("a square",), png(31), ("a round", "a square"), "shapes"),
        Asked("8", WHICH_NOW, ("blue",), png(31), ("red", "green", "blue"), "colours"),
    ],
)
FORMS["vlmeval_answer"] = Form(
    {
        "vlmeval/answer.tsv": separated(
            ["index", "image", "question", "answer"], [[0, SHAPE, "What does it say?", "open"]], "\t"
        )
    },
    [Asked("0", "What does it say?" + SHORT, ("open",), png(31))],
)
