"""Sections, cleaning, sentences and keys of reports."""

from __future__ import annotations

import doctest
import importlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mc_medical.data.reports import (
    ReportOptions,
    clean,
    report_text,
    sections,
    sentences,
    swap_sides,
    text_key,
)

MIMIC = """                                 FINAL REPORT
 EXAMINATION:  CHEST (PA AND LAT)

 INDICATION:  ___F with new onset ascites  // eval for infection

 TECHNIQUE:  Chest PA and lateral

 COMPARISON:  None.

 FINDINGS:

 There is no focal consolidation, pleural effusion
 or pneumothorax.  The heart is normal.

 IMPRESSION:

 No acute cardiopulmonary process.
"""
MODULES = """
reports report_words columns tables class_names splits radiograph image_config dicom_luts joins
"""


@pytest.mark.parametrize("name", MODULES.split())
def test_examples_of_data_modules(name):
    result = doctest.testmod(importlib.import_module(f"mc_medical.data.{name}"))
    assert result.failed == 0
    assert result.attempted > 0 or name == "report_words"


def test_a_report_of_mimic():
    found = sections(MIMIC)
    assert (
        found["findings"] == "There is no focal consolidation, pleural effusion or pneumothorax. The heart is normal."
    )
    assert found["impression"] == "No acute cardiopulmonary process."
    assert found["indication"].startswith("___F with new onset")
    assert found["comparison"] == "None."
    assert report_text(MIMIC) == "No acute cardiopulmonary process."
    assert report_text(MIMIC, ReportOptions(section="findings-first")) == found["findings"]
    assert report_text(MIMIC, ReportOptions(section="all")) == f"{found['findings']} {found['impression']}"


@pytest.mark.parametrize("indent", ["", " ", "\t", "        "])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("style", [str.upper, str.capitalize, str.lower])
def test_headers_of_any_indentation_line_end_and_case(indent, end, style):
    text = end.join(
        f"{indent}{style(h)}: {b}" for h, b in (("findings", "Clear lungs."), ("conclusion", "Normal chest."))
    )
    assert sections(text) == {"findings": "Clear lungs.", "impression": "Normal chest."}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("FINDINGS: Clear. IMPRESSION: Normal chest.", {"findings": "Clear.", "impression": "Normal chest."}),
        ("CHEST, PA AND LATERAL VIEWS: Clear lungs.", {"findings": "Clear lungs."}),
        ("IMPRESSION\nNormal chest.\n", {"impression": "Normal chest."}),
        ("NDICATION: Cough.", {"indication": "Cough."}),
        ("WET READ: Clear.", {"wet read": "Clear."}),
        ("FINDINGS: One.\nADDENDUM: x.\nFINDINGS: Two.", {"findings": "One. Two.", "other": "x."}),
        ("Tube at T4: fine. Ratio 1:2 seen.", {"preamble": "Tube at T4: fine. Ratio 1:2 seen."}),
        ("", {}),
    ],
)
def test_sections_in_other_shapes(text, expected):
    assert sections(text) == expected


def test_the_last_paragraph_stands_in():
    text = "FINAL REPORT\n HISTORY:  Cough. COMPARISON: ___.\n\n PA and lateral views.\n\n Lungs are clear. Heart normal.\n\n"
    assert report_text(text) == "Lungs are clear. Heart normal."
    assert report_text("INDICATION: Cough.\n\nCOMPARISON: None.") == ""
    assert report_text("First paragraph of a note.\n\nSecond one.") == "First paragraph of a note. Second one."


def test_findings_stand_in_before_the_last_paragraph():
    text = "FINDINGS: Clear lungs.\n\nADDENDUM: Typed twice."
    assert report_text(text) == "Clear lungs."
    assert report_text("WET READ: Effusion.\n\nDISPOSITION: Home.") == "Effusion."


def test_advice_is_left_out_and_comparisons_where_asked():
    advice = "2. Recommend follow-up CT. 3. Unchanged cardiomegaly. Findings discussed with Dr. ___."
    text = f"IMPRESSION: 1. Small left effusion. {advice}"
    assert report_text(text) == "Small left effusion. Unchanged cardiomegaly."
    assert report_text(text, ReportOptions(drop_comparisons=True)) == "Small left effusion."
    assert "Recommend follow-up CT." in report_text(text, ReportOptions(drop_recommendations=False))


def test_a_section_of_advice_alone_gives_way_to_the_next():
    assert report_text("FINDINGS: Nodule in the left apex.\nIMPRESSION: Recommend CT.") == "Nodule in the left apex."


def test_other_languages_by_headers():
    options = ReportOptions(headers={"BEFUND": "findings", " Beurteilung": "impression"})
    text = "KLINIK: Husten\nBefund: Herz normal groß.\nBEURTEILUNG: Kein Infiltrat am 12.03.2019 sichtbar."
    assert report_text(text, options) == "Kein Infiltrat am sichtbar."
    assert report_text(text, options.model_copy(update={"section": "findings-first"})) == "Herz normal groß."
    assert (
        report_text(text, ReportOptions(headers=("befund = findings", "Beurteilung=impression")))
        == "Kein Infiltrat am sichtbar."
    )
    assert ReportOptions(**options.model_dump()) == options
    assert sections("Befund: Klar.", {"BEFUND": "findings"}) == {"findings": "Klar."}
    for wrong in ({"": "findings"}, ("BEFUND",), "BEFUND="):
        with pytest.raises(ValueError, match="names no section; write it as in BEFUND=findings"):
            ReportOptions(headers=wrong)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Compared to ___, no change.", "Compared to, no change."),
        ("[**2101-3-4**] [**Name (NI) 12**] seen.", "seen."),
        ("XXXX XXXX and lateral. XXXX-XXXX.", "and lateral."),
        ("1. Clear. 2) Normal. (3) Fine.", "Clear. Normal. Fine."),
        ("Nodule of 1.5 cm at T4. Size 3 x 4 mm.", "Nodule of 1.5 cm at T4. Size 3 x 4 mm."),
        ("Seen 2019-03-14, 3/14/19 and March 5, 2019 at 14:35.", "Seen, and at."),
        ("Ribs 2-3 and 5/6 broken in 1/2 of cases.", "Ribs 2-3 and 5/6 broken in 1/2 of cases."),
        ("  many   \n spaces\t.", "many spaces."),
        ("___", ""),
    ],
)
def test_cleaning(text, expected):
    assert clean(text) == expected


@settings(max_examples=150, deadline=None)
@given(st.text(alphabet=st.sampled_from(list("ab .,:;()[]*_X\n12/-30:APM")), max_size=60))
def test_cleaning_twice_is_cleaning_once(text):
    once = clean(text)
    assert "__" not in once
    assert "  " not in once
    assert clean(once) == once


@settings(max_examples=80, deadline=None)
@given(st.text(max_size=200))
def test_any_text_at_all_is_read(text):
    found = report_text(text)
    assert found == " ".join(found.split())
    assert sentences(found) == [] or " ".join(sentences(found)) != ""
    assert 0 <= text_key(text) < 1 << 63


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("Clear lungs. No effusion.", 2),
        ("Discussed with Dr. Smith at noon. Done then.", 2),
        ("Nodule, approx. 2.5 cm vs. scar.", 1),
        ("lungs are clear . no effusion .", 2),
        ("Normal? Yes! Fine.", 3),
        ("a. b. 1.", 0),
    ],
)
def test_sentences(text, count):
    assert len(sentences(text)) == count


def test_keys_know_the_text_and_not_its_dress():
    key = text_key("No acute cardiopulmonary process.")
    assert key == text_key("  no ACUTE\ncardiopulmonary process") == text_key("No acute cardiopulmonary process!")
    assert key == 2793298116391537954  # stored in runs: must not change
    others = ["Acute cardiopulmonary process.", "No acute process.", "No acute cardiopulmonary process seen."]
    assert len({key, *map(text_key, others)}) == 4


def test_sides_change_places_and_back():
    text = "LEFT-sided effusion; right lung, Right apex. RLL and lul clear, bright. Bilateral."
    swapped = swap_sides(text)
    assert swapped == "RIGHT-sided effusion; left lung, Left apex. LLL and rul clear, bright. Bilateral."
    assert swap_sides(swapped) == text
