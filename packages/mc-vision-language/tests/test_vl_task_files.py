"""Questions, statements, entailments and phrases from files as they were published, from tables and tars, and what can be wrong."""

import io
import json
import os
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mc_core.errors import DataError
from mc_vision_language.data.options import ReadOptions
from mc_vision_language.data.phrases import open_phrases
from mc_vision_language.data.questions import GENOME_WEIGHT, AnswerList, open_questions
from mc_vision_language.data.records import read_records, text_list
from mc_vision_language.data.statements import open_entailments, open_statements


def photo(path: Path, size=(40, 30), shade=90):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (shade, 80, 70)).save(path)


def write(path: Path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def lines(path: Path, records):
    return write(path, "".join(json.dumps(record) + "\n" for record in records))


def vqa_files(folder: Path, part="val2014"):
    for number in (42, 73):
        photo(folder / part / f"COCO_{part}_{number:012d}.jpg", shade=number)
    questions = [
        {"image_id": image, "question": text, "question_id": 10 * image + place}
        for place, (image, text) in enumerate([(42, "What is it?"), (42, "Is it red?"), (73, "How many?")])
    ]
    answers = [["net"] * 7 + ["bat"] * 3, ["yes"] * 10, ["2"] * 6 + ["two"] * 4]
    annotations = [
        {
            "question_id": one["question_id"],
            "image_id": one["image_id"],
            "question_type": "what is",
            "answer_type": "other",
            "multiple_choice_answer": given[0],
            "answers": [{"answer": a, "answer_confidence": "yes", "answer_id": n} for n, a in enumerate(given, 1)],
        }
        for one, given in zip(questions, answers, strict=True)
    ]
    head = {"info": {}, "task_type": "Open-Ended", "data_type": "mscoco", "data_subtype": part, "license": {}}
    path = write(folder / f"v2_OpenEnded_mscoco_{part}_questions.json", {**head, "questions": questions})
    return path, write(folder / f"v2_mscoco_{part}_annotations.json", {**head, "annotations": annotations})


def test_vqa_v2(tmp_path):
    path, _ = vqa_files(tmp_path)
    found = open_questions(path)  # the answers lie beside
    assert found.texts == ("What is it?", "Is it red?", "How many?")
    assert [len(given) for given in found.answers] == [10, 10, 10]
    assert found.image_of.tolist() == [0, 0, 1]
    assert set(found.splits) == {"validation"}
    assert found.ids == ("420", "421", "732")
    assert found.kinds[0] == "what is"
    assert found.images.name(1).endswith("COCO_val2014_000000000073.jpg")
    assert AnswerList.of(found.answers, 10).answers == ("2", "yes", "net", "bat")


def test_vqa_v2_without_answers_can_be_asked_but_not_measured(tmp_path):
    path, annotations = vqa_files(tmp_path)
    annotations.unlink()
    found = open_questions(path)
    assert found.answers == ((), (), ())
    with pytest.raises(DataError, match="no question has an answer"):
        found.answered()


def test_vqa_v2_with_the_answers_of_another_set(tmp_path):
    path, annotations = vqa_files(tmp_path)
    content = json.loads(annotations.read_text())
    content["annotations"].pop()
    annotations.write_text(json.dumps(content))
    with pytest.raises(DataError, match=r"question 732 has no entry in .*annotations\.json"):
        open_questions(path)


def test_visual_genome(tmp_path):
    photo(tmp_path / "VG_100K_2" / "7.jpg")
    qas = [
        {
            "image_id": 7,
            "qa_id": 1,
            "question": "What is on the curb?",
            "answer": "A bin.",
            "a_objects": [],
            "q_objects": [],
        }
    ]
    found = open_questions(write(tmp_path / "question_answers.json", [{"id": 7, "qas": qas}]))
    assert found.answers == (("A bin.",),)
    assert found.weights.tolist() == [GENOME_WEIGHT]


def tar(path: Path, notes):
    with tarfile.open(path, "w") as archive:
        for key, note in notes.items():
            picture = io.BytesIO()
            Image.new("RGB", (40, 30)).save(picture, "PNG")
            for name, data in ((f"{key}.png", picture.getvalue()), (f"{key}.json", json.dumps(note).encode())):
                member = tarfile.TarInfo(name)
                member.size = len(data)
                archive.addfile(member, io.BytesIO(data))
    return path


def test_a_tar_of_pictures_with_questions(tmp_path):
    qa = [
        {"question": "what is there ?", "answers": ["coffee_table"]},
        {"question": "how many ?", "answers": ["2", "3"]},
    ]
    found = open_questions(tar(tmp_path / "indoor.tar", {"a": {"qa": qa}, "b": {"qa": qa[:1]}}))
    assert found.answers == (("coffee table",), ("2", "3"), ("coffee table",))
    assert found.image_of.tolist() == [0, 0, 1]
    assert found.images.read(1).size == (40, 30)


@pytest.mark.parametrize("kind", ["csv", "jsonl", "json", "parquet"])
def test_tables_of_questions(tmp_path, kind):
    photo(tmp_path / "a.jpg")
    rows = [
        {"image": "a.jpg", "question": "is it red", "answers": "yes|no|yes", "split": "train"},
        {"image": "a.jpg", "question": "what is it", "answers": "cup", "split": "val"},
    ]
    path = tmp_path / f"own.{kind}"
    if kind == "csv":
        write(path, "image,question,answers,split\n" + "".join(",".join(row.values()) + "\n" for row in rows))
    elif kind == "parquet":
        import pyarrow as pa
        from pyarrow import parquet

        parquet.write_table(pa.Table.from_pylist(rows), path)
    elif kind == "json":
        write(path, [{**row, "answers": text_list(row["answers"])} for row in rows])
    else:
        lines(path, rows)
    found = open_questions(path)
    assert found.answers == (("yes", "no", "yes"), ("cup",))
    assert found.splits.tolist() == ["train", "validation"]
    assert len(found.part("validation")) == 1


def nlvr2_files(folder: Path):
    for base in ("train-10171-0", "train-9-1"):
        for side in (0, 1):
            photo(folder / "images" / "train" / "35" / f"{base}-img{side}.png", shade=side)
    common = {"directory": 35, "synset": "saxophone", "query": "saxophones2", "writer": "15", "validation": {}}
    return lines(
        folder / "train.json",
        [
            {"identifier": "train-10171-0-0", "sentence": "There are two.", "label": "True", **common},
            {"identifier": "train-9-1-3", "sentence": "The left one is red.", "label": "False", **common},
        ],
    )


def test_nlvr2(tmp_path):
    found = open_statements(nlvr2_files(tmp_path))
    assert found.labels.tolist() == [1, 0]
    assert found.image_of.tolist() == [[0, 1], [2, 3]]
    assert found.images.name(1).endswith("train-10171-0-img1.png")
    assert set(found.splits) == {"train"}


def test_tables_of_statements_and_the_list_of_albef(tmp_path):
    photo(tmp_path / "l.png"), photo(tmp_path / "r.png")
    own = write(
        tmp_path / "own.csv", "image_1,image_2,sentence,label\nl.png,r.png,both are red,true\nr.png,l.png,none is,0\n"
    )
    assert open_statements(own).labels.tolist() == [1, 0]
    listed = write(tmp_path / "nlvr_train.json", [{"sentence": "x", "label": "True", "images": ["l.png", "r.png"]}])
    assert open_statements(listed).image_of.tolist() == [[0, 1]]


def test_nlvr_as_a_tar_shows_one_picture_twice(tmp_path):
    found = open_statements(
        tar(tmp_path / "nlvr.tar", {"a": {"sentence": "one box", "label": True, "identifier": "1-0"}})
    )
    assert found.image_of.tolist() == [[0, 0]]
    assert found.labels.tolist() == [1]


def test_snli_ve_and_what_people_did_not_agree_on(tmp_path):
    photo(tmp_path / "flickr30k-images" / "3416.jpg")
    rows = [
        {
            "Flickr30K_ID": "3416",
            "gold_label": label,
            "sentence1": "a premise",
            "sentence2": f"claim {n}",
            "pairID": f"3416#{n}",
        }
        for n, label in enumerate(["entailment", "neutral", "contradiction", "-"])
    ]
    found = open_entailments(lines(tmp_path / "snli_ve_train.jsonl", rows), split="train")
    assert found.labels.tolist() == [2, 1, 0]
    assert found.texts[0] == "claim 0"
    assert found.dropped == {"no label": 1}
    assert "line 4" in found.examples["no label"]


def refcoco_files(folder: Path, box=(5, 6, 10, 12)):
    photo(folder / "train2014" / "COCO_train2014_000000000009.jpg")
    image = {"id": 9, "file_name": "COCO_train2014_000000000009.jpg", "width": 40, "height": 30}
    write(
        folder / "instances.json",
        {"images": [image], "annotations": [{"id": 1, "image_id": 9, "bbox": box, "category_id": 3}]},
    )
    sentences = [
        {"tokens": [], "raw": "Red Car", "sent_id": 0, "sent": "red car"},
        {"sent_id": 1, "sent": "car on the left"},
    ]
    reference = {"ref_id": 0, "ann_id": 1, "image_id": 9, "split": "testA", "sentences": sentences, "sent_ids": [0, 1]}
    return write(folder / "refs.json", [reference])


def test_refcoco(tmp_path):
    proposals = write(tmp_path / "dets.json", {"9": [[5, 6, 10, 12], [0, 0, 4, 4, 0.9]], "10": [[1, 1, 2, 2]]})
    found = open_phrases(refcoco_files(tmp_path), proposals=proposals)
    assert found.texts == ("red car", "car on the left")
    assert found.boxes.tolist() == [[5, 6, 15, 18]] * 2
    assert found.sizes.tolist() == [[40, 30]] * 2
    assert set(found.splits) == {"test"}
    assert found.proposals[0].tolist() == [[5, 6, 15, 18], [0, 0, 4, 4]]
    listed = write(tmp_path / "list.json", [{"image_id": 9, "box": [0, 0, 4, 4], "score": 0.5}])
    assert open_phrases(tmp_path / "refs.json", proposals=listed).proposals[0].tolist() == [[0, 0, 4, 4]]


def test_phrases_are_captions_for_training(tmp_path):
    pairs = open_phrases(refcoco_files(tmp_path)).pairs()
    assert pairs.captions == ("red car", "car on the left")
    assert pairs.splits.tolist() == ["test"]


def test_objects_of_a_tar_that_occur_once(tmp_path):
    boxes = [("cat", [1, 2, 10, 10]), ("dog", [3, 3, 5, 5]), ("dog", [20, 3, 5, 5])]
    note = {
        "width": 40,
        "height": 30,
        "objects": [{"category": name, "bbox": box, "iscrowd": 0} for name, box in boxes],
    }
    found = open_phrases(tar(tmp_path / "coco.tar", {"a": note, "b": {"width": 40, "height": 30}}))
    assert found.texts == ("cat",)
    assert found.boxes.tolist() == [[1, 2, 11, 12]]
    assert len(found.proposals[0]) == 3


def test_a_table_of_phrases_some_without_box(tmp_path):
    photo(tmp_path / "a.jpg")
    found = open_phrases(write(tmp_path / "own.csv", 'image,phrase,box\na.jpg,red car,"1 2 30 20"\na.jpg,wheel,\n'))
    assert np.isnan(found.boxes[1]).all()
    assert found.located().texts == ("red car",)


def one_line(error) -> str:
    text = str(error.value)
    assert "\n" not in text
    return text


@pytest.mark.parametrize(
    ("box", "says"),
    [
        ("1 2 60 20", r"line 2: box \[1\.0, 2\.0, 60\.0, 20\.0\] lies outside the picture of 40 × 30"),
        ("-9 2 20 20", "lies outside"),
        ("20 2 10 20", "has no area"),
        ("1 2 3", "has 3 numbers"),
        ("1 2 3 x", "is not four numbers"),
    ],
)
def test_a_box_that_cannot_be(tmp_path, box, says):
    photo(tmp_path / "a.jpg")
    path = write(tmp_path / "own.csv", f'image,phrase,box\na.jpg,red car,"{box}"\n')
    with pytest.raises(DataError, match=says) as error:
        open_phrases(path)
    one_line(error)


def test_a_published_box_outside_its_picture(tmp_path):
    with pytest.raises(DataError, match=r"entry 1: box .* lies outside the picture of 40 × 30"):
        open_phrases(refcoco_files(tmp_path, box=(30, 6, 20, 12)))


def test_an_unknown_label_names_its_line_and_the_labels(tmp_path):
    photo(tmp_path / "a.jpg")
    path = write(tmp_path / "own.csv", "image,sentence,label\na.jpg,it is red,entailment\na.jpg,it is blue,perhaps\n")
    with pytest.raises(
        DataError, match=r"line 3: label 'perhaps'; labels are contradiction, neutral, entailment"
    ) as error:
        open_entailments(path)
    one_line(error)
    statements = write(tmp_path / "s.csv", "image_1,image_2,sentence,label\na.jpg,a.jpg,red,maybe\n")
    with pytest.raises(DataError, match=r"label 'maybe'; labels are true, yes, false, no"):
        open_statements(statements)


def test_missing_pictures_are_counted_listed_and_bounded(tmp_path):
    photo(tmp_path / "a.jpg")
    path = write(tmp_path / "own.csv", "image,question,answer\na.jpg,is it,yes\ngone.jpg,is it,no\n")
    with pytest.raises(DataError, match=r"1 of 2 rows .*line 3: there is no .*gone\.jpg.*--max-bad") as error:
        open_questions(path)
    one_line(error)
    found = open_questions(path, read=ReadOptions(max_bad=0.5))
    assert len(found) == 1
    assert found.dropped == {"missing image": 1}


def test_nothing_left_is_an_error(tmp_path):
    path = write(tmp_path / "own.csv", "image,question,answer\ngone.jpg,is it,no\n")
    with pytest.raises(DataError, match="cannot be used"):
        open_questions(path, read=ReadOptions(max_bad=1.0))


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("q.p", "", "is a pickle"),
        ("q.xlsx", "", "annotations come as"),
        ("q.json", "[1, 2", r"not JSON"),
        ("q.json", "[]", "holds no annotations"),
        ("q.jsonl", '{"a": 1}\n{"a"', "line 2: not JSON"),
        ("q.csv", "image,question\na.jpg\n", "not as many cells"),
        ("q.json", '[{"image": "a.jpg"}, 3]', "entry 2: a mapping"),
    ],
)
def test_files_that_cannot_be_read(tmp_path, name, content, says):
    path = write(tmp_path / name, content)
    with pytest.raises(DataError, match=says) as error:
        read_records(path)
    one_line(error)


def test_a_missing_field_names_what_is_there(tmp_path):
    path = write(tmp_path / "own.csv", "photo,question,answer\na.jpg,is it,yes\n")
    with pytest.raises(DataError, match=r"line 2: no image .*it has .*photo"):
        open_questions(path)


def test_a_list_of_answers(tmp_path):
    assert AnswerList.read(write(tmp_path / "a.txt", "Yes\nno\nyes\n\n")).answers == ("yes", "no")
    assert AnswerList.read(write(tmp_path / "a.json", ["Two", "cat"])).answers == ("2", "cat")
    assert AnswerList(("The Cat", "cat", "Two")).answers == ("cat", "2")
    with pytest.raises(DataError, match="holds no answers"):
        AnswerList.read(write(tmp_path / "b.txt", "\n"))
    with pytest.raises(DataError, match="a JSON list of answers"):
        AnswerList.read(write(tmp_path / "b.json", {"a": 1}))


def test_a_picture_is_never_in_two_splits(tmp_path):
    for name in "abcdefgh":
        photo(tmp_path / f"{name}.jpg")
    pairs = [("a", "b"), ("b", "c"), ("d", "e"), ("f", "f"), ("c", "a"), ("g", "h")]
    rows = "".join(f"{x}.jpg,{y}.jpg,both are red,true\n" for x, y in pairs)
    path = write(tmp_path / "own.csv", f"image_1,image_2,sentence,label\n{rows}")
    for seed in range(5):
        found = open_statements(path).divided((0.4, 0.3, 0.3), seed)
        split_of: dict[int, str] = {}
        for row, split in zip(found.image_of, found.splits, strict=True):
            for picture in row.tolist():
                assert split_of.setdefault(picture, split) == split


def test_rows_of_one_named_split_are_divided_anew(tmp_path):
    for name in "abcdefghij":
        photo(tmp_path / f"{name}.jpg")
    rows = "".join(f"{name}.jpg,is it,yes,train\n" for name in "abcdefghij")
    found = open_questions(write(tmp_path / "own.csv", f"image,question,answer,split\n{rows}")).divided(
        (0.5, 0.2, 0.3), 1
    )
    assert set(found.splits) == {"train", "validation", "test"}


DATA = os.environ.get("MC_DATA")


@pytest.mark.skipif(DATA is None, reason="MC_DATA names no folder of real data")
def test_real_questions_statements_and_boxes():
    folder = Path(str(DATA)) / "vision-language"
    questions = open_questions(folder / "daquar-vqa-train.tar")
    assert (len(questions), len(questions.images)) == (3728, 430)
    statements = open_statements(folder / "nlvr-dev.tar")
    assert len(statements) == 989
    assert 0.5 < statements.labels.mean() < 0.6
    phrases = open_phrases(folder / "coco-captions-mini.tar")
    assert len(phrases) > 200
    assert np.isfinite(phrases.boxes).all()


def tar_with(path: Path, notes):
    """A picture and what lies beside it."""
    with tarfile.open(path, "w") as archive:
        picture = io.BytesIO()
        Image.new("RGB", (40, 30)).save(picture, "PNG")
        for name, data in (("a.png", picture.getvalue()), ("a.json", json.dumps(notes).encode())):
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return path


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ([{"id": 1, "qas": ["what"]}], "entry 1: not in the layout"),
        ([{"id": 1, "qas": None}], "entry 1: not in the layout"),
        ({"questions": [{"question_id": 1, "image_id": "n139", "question": "what"}]}, "entry 1.*n139"),
    ],
)
def test_questions_of_another_layout_are_said_in_one_line(tmp_path, content, says):
    with pytest.raises(DataError, match=says):
        open_questions(write(tmp_path / "q.json", content))


@pytest.mark.parametrize("answers", [["cat"], [{"text": "cat"}], None])
def test_answers_of_another_layout_are_said_in_one_line(tmp_path, answers):
    path, beside = vqa_files(tmp_path)
    content = json.loads(beside.read_text())
    content["annotations"][0]["answers"] = answers
    write(beside, content)
    with pytest.raises(DataError, match=r"v2_mscoco_val2014_annotations\.json, entry 1: (no answer|not in the layout)"):
        open_questions(path)


def test_notes_of_another_layout_are_said_in_one_line(tmp_path):
    with pytest.raises(DataError, match=r"a\.json: not in the layout"):
        open_questions(tar_with(tmp_path / "q.tar", {"qa": ["what"]}))
    with pytest.raises(DataError, match=r"a\.json: no bbox"):
        open_phrases(tar_with(tmp_path / "p.tar", {"width": 40, "height": 30, "objects": [{"category": "cup"}]}))


@pytest.mark.parametrize("content", [[{"box": [1, 2, 3, 4]}], {"a.png": [1, 2, 3, 4]}])
def test_proposals_of_another_layout_are_said_in_one_line(tmp_path, content):
    photo(tmp_path / "a.png")
    table = write(tmp_path / "t.csv", "image,phrase\na.png,cup\n")
    with pytest.raises(DataError, match=r"p\.json: (no image_id|not in the layout)"):
        open_phrases(table, proposals=write(tmp_path / "p.json", content))


@pytest.mark.parametrize("mark", [",", ";", "|"])
def test_cells_are_parted_by_the_mark_of_the_header(tmp_path, mark):
    photo(tmp_path / "a.png")
    text = f"\ufeffimage{mark}question{mark}answer\na.png{mark}what?{mark}cup\n"
    assert open_questions(write(tmp_path / "q.csv", text)).answers == (("cup",),)


def test_members_that_are_not_in_the_tar_are_counted_as_missing(tmp_path):
    tar = tar_with(tmp_path / "p.tar", {})
    rows = [{"image": name, "question": "what?", "answer": "cup"} for name in ("a.png", "./a.PNG", "b.png")]
    found = open_questions(lines(tmp_path / "q.jsonl", rows), images=tar, read=ReadOptions(max_bad=0.5))
    assert (len(found), found.dropped["missing image"]) == (2, 1)
    with pytest.raises(DataError, match=r"1 of 3 rows cannot be used.*b\.png"):
        open_questions(tmp_path / "q.jsonl", images=tar)


def test_pictures_that_rows_link_to_one_group_cannot_be_divided(tmp_path):
    names = [photo(tmp_path / f"{n}.png", shade=n) or f"{n}.png" for n in range(5)]
    rows = [
        {"image_1": a, "image_2": b, "sentence": "same", "label": "true"}
        for a, b in zip(names, names[1:] + names[:1], strict=True)
    ]
    ring = open_statements(lines(tmp_path / "s.jsonl", rows))
    with pytest.raises(
        DataError, match="5 pictures cannot be divided into 3 parts.*link all to 1; say in a column split"
    ):
        ring.divided((0.8, 0.1, 0.1), 0)
