"""The words of phantom reports. ``text | Observation=value`` names what a phrase mentions besides its own finding."""

from __future__ import annotations

SIDED_WORDS: dict[str, tuple[str, ...]] = {
    "right": ("right", "right", "right-sided"),
    "left": ("left", "left", "left-sided"),
    "both": ("bilateral",),
}

ZONE_WORDS: dict[tuple[str, str], tuple[str, ...]] = {
    ("right", "upper"): ("right upper lobe", "right upper lung zone", "right upper lung"),
    ("right", "middle"): ("right mid lung", "right middle lung zone", "right mid lung zone"),
    ("right", "lower"): ("right lower lobe", "right lung base", "right lower lung zone"),
    ("left", "upper"): ("left upper lobe", "left upper lung zone", "left upper lung"),
    ("left", "middle"): ("left mid lung", "left mid lung zone", "lingula"),
    ("left", "lower"): ("left lower lobe", "left lung base", "left lower lung zone"),
}

SEVERITY_WORDS: dict[str, tuple[tuple[str, ...], ...]] = {
    "Pleural Effusion": (
        ("small", "trace", "tiny", "small"),
        ("moderate", "moderate-sized", "moderate"),
        ("large", "very large"),
    ),
    "Cardiomegaly": (("mild", "mild"), ("moderate",), ("severe", "marked")),
    "Consolidation": (
        ("subtle", "patchy", "small"),
        ("focal", "moderate", "confluent"),
        ("dense", "extensive", "large"),
    ),
    "Edema": (("mild",), ("moderate",), ("severe", "marked")),
    "Atelectasis": (("minimal", "mild"), ("mild to moderate", "moderate"), ("marked", "extensive")),
    "Pneumothorax": (("small", "tiny"), ("moderate", "moderate-sized"), ("large",)),
    "Lung Lesion": (("small", "subcentimeter"), ("1.5 cm", "2 cm"), ("3.5 cm", "4 cm", "large")),
}

FINDING_PHRASES: dict[tuple[str, str], tuple[str, ...]] = {
    ("Pleural Effusion", ""): (
        "There {is_} {a} {severity} {sided} pleural effusion{s}.",
        "{severity} {sided} pleural effusion{s}.",
        "{severity} {side} pleural effusion{s} {is_} present.",
        "{a} {severity} {side} effusion{s} {is_} seen.",
        "There {is_} {a} {severity} {side} pleural effusion{s} with blunting of the costophrenic angle{s}.",
        "{sided} pleural effusion{s}, {severity} in size.",
        "Layering {severity} {side} pleural effusion{s}.",
    ),
    ("Cardiomegaly", ""): (
        "There is {severity} cardiomegaly.",
        "{severity} cardiomegaly.",
        "{severity} enlargement of the cardiac silhouette.",
        "The heart is enlarged, of {severity} degree.",
        "The cardiac silhouette shows {severity} enlargement.",
        "Heart size is increased with {severity} cardiomegaly.",
    ),
    ("Consolidation", ""): (
        "{severity} consolidation in the {zone}.",
        "There is {severity} consolidation in the {zone}.",
        "{severity} airspace consolidation involving the {zone}.",
        "{severity} airspace opacity in the {zone}, consistent with consolidation. | Lung Opacity=1",
        "The {zone} shows {severity} consolidation with air bronchograms.",
        "{severity} {zone} consolidation.",
    ),
    ("Edema", ""): (
        "There is {severity} pulmonary edema.",
        "{severity} pulmonary edema.",
        "{severity} interstitial pulmonary edema.",
        "Perihilar haze and prominent vessels, consistent with {severity} edema.",
        "Pulmonary vascular congestion with {severity} edema.",
        "Bilateral perihilar opacities in keeping with {severity} pulmonary edema. | Lung Opacity=1",
    ),
    ("Atelectasis", "linear"): (
        "{severity} linear atelectasis at {base}.",
        "{severity} plate-like atelectasis in {base}.",
        "Linear opacities at {base}, compatible with {severity} subsegmental atelectasis. | Lung Opacity=1",
        "There is {severity} {side} basilar linear atelectasis.",
        "{severity} discoid atelectasis at {base}.",
    ),
    ("Atelectasis", "basal"): (
        "{severity} atelectasis at {base}.",
        "{severity} {side} basilar atelectasis with volume loss.",
        "Volume loss and opacity at {base} reflect {severity} atelectasis. | Lung Opacity=1",
        "There is {severity} atelectasis in {base} with elevation of the hemidiaphragm{s}.",
        "{severity} {side} lower lobe atelectasis.",
    ),
    ("Pneumothorax", ""): (
        "There is {a} {severity} {sided} pneumothorax.",
        "{severity} {side} pneumothorax.",
        "{severity} {side} apical pneumothorax with a visible pleural line.",
        "{a} {severity} pneumothorax is present on the {side} side.",
    ),
    ("Lung Lesion", ""): (
        "{severity} nodule in the {zone}.",
        "There is {a} {severity} rounded lesion in the {zone}.",
        "{severity} nodular opacity in the {zone}. | Lung Opacity=1",
        "{a} {severity} well-defined pulmonary nodule projects over the {zone}.",
    ),
    ("Support Devices", "pacemaker"): (
        "Left chest wall pacemaker with lead in the right ventricle.",
        "A left-sided pacemaker is in place.",
        "Left pectoral pacing device with intact lead.",
    ),
    ("Support Devices", "tube"): (
        "Endotracheal tube terminates above the carina.",
        "The tip of the endotracheal tube is in appropriate position.",
        "ET tube in standard position.",
    ),
    ("Support Devices", "line"): (
        "Right internal jugular central venous catheter with tip in the SVC.",
        "A right central line terminates in the superior vena cava.",
        "Right IJ line in unchanged position.",
    ),
}

UNCERTAIN_PHRASES: dict[tuple[str, str], tuple[str, ...]] = {
    ("Pleural Effusion", ""): (
        "Possible trace {side} pleural effusion{s}.",
        "Blunting of the {side} costophrenic angle{s} may represent a small effusion or pleural thickening.",
        "A small {side} pleural effusion cannot be excluded.",
    ),
    ("Cardiomegaly", ""): (
        "Possible mild cardiomegaly, accentuated by technique.",
        "Heart size is difficult to assess, questionable cardiomegaly.",
        "The heart may be mildly enlarged.",
    ),
    ("Consolidation", ""): (
        "Possible early consolidation in the {zone}.",
        "Faint density in the {zone} may represent developing consolidation.",
        "Consolidation in the {zone} cannot be excluded.",
    ),
    ("Edema", ""): (
        "Possible mild pulmonary edema.",
        "Mild interstitial prominence could reflect early edema.",
        "Minimal pulmonary edema cannot be excluded.",
    ),
    ("Atelectasis", ""): (
        "Possible minimal atelectasis at {base}.",
        "Faint density at {base} is probably atelectasis.",
        "Questionable {side} basilar atelectasis.",
    ),
    ("Pneumothorax", ""): (
        "Possible tiny {side} apical pneumothorax.",
        "A tiny {side} pneumothorax cannot be excluded.",
    ),
    ("Lung Lesion", ""): (
        "Possible nodule in the {zone}, which may be a summation of shadows.",
        "A faint nodular density in the {zone} is questionable.",
    ),
}

# the first group speaks of clear lungs; each sentence is left out where it would contradict a finding
NORMAL_SENTENCES: tuple[tuple[tuple[str, ...], float], ...] = (
    (
        (
            "The lungs are clear. | Lung Opacity=0",
            "Lungs are clear bilaterally. | Lung Opacity=0",
            "Clear lungs. | Lung Opacity=0",
            "The lungs are well expanded and clear. | Lung Opacity=0",
            "No focal opacity. | Lung Opacity=0",
        ),
        0.65,
    ),
    (
        (
            "Heart size is normal. | Cardiomegaly=0",
            "The heart is normal in size. | Cardiomegaly=0",
            "The heart is not enlarged. | Cardiomegaly=0",
            "Normal heart size and mediastinal contours. | Cardiomegaly=0; Enlarged Cardiomediastinum=0",
            "The cardiomediastinal silhouette is within normal limits. | Enlarged Cardiomediastinum=0; Cardiomegaly=0",
            "No cardiomegaly. | Cardiomegaly=0",
        ),
        0.75,
    ),
    (
        (
            "No pleural effusion or pneumothorax. | Pleural Effusion=0; Pneumothorax=0",
            "There is no pleural effusion or pneumothorax. | Pleural Effusion=0; Pneumothorax=0",
            "Pleural spaces are clear, without effusion. | Pleural Effusion=0",
            "No effusion is seen. | Pleural Effusion=0",
        ),
        0.55,
    ),
)

NEGATIONS: tuple[str, ...] = (
    "No focal consolidation, pleural effusion, or pneumothorax. | Consolidation=0; Pleural Effusion=0; Pneumothorax=0",
    "There is no focal consolidation. | Consolidation=0",
    "No evidence of consolidation. | Consolidation=0",
    "No pneumothorax. | Pneumothorax=0",
    "There is no evidence of pneumothorax. | Pneumothorax=0",
    "No pleural effusion. | Pleural Effusion=0",
    "No pulmonary edema. | Edema=0",
    "There is no evidence of pulmonary edema. | Edema=0",
    "No vascular congestion or edema. | Edema=0",
    "No suspicious pulmonary nodule. | Lung Lesion=0",
    "No atelectasis. | Atelectasis=0",
    "No displaced rib fracture. | Fracture=0",
    "No acute fracture is identified. | Fracture=0",
    "Mediastinal contours are normal. | Enlarged Cardiomediastinum=0",
)

IMPRESSION_NORMAL: tuple[str, ...] = (
    "No acute cardiopulmonary process.",
    "No acute cardiopulmonary process.",
    "No acute cardiopulmonary abnormality.",
    "No acute intrathoracic process.",
    "Normal chest radiograph.",
    "No radiographic evidence of pneumonia. | Pneumonia=0",
    "No evidence of acute disease.",
    "Unremarkable examination of the chest.",
)

PNEUMONIA_AFTER: tuple[str, ...] = (
    "This may represent pneumonia in the appropriate clinical setting. | Pneumonia=-1",
    "Findings are concerning for pneumonia. | Pneumonia=-1",
    "Appearance is suspicious for pneumonia. | Pneumonia=-1",
    "Possible pneumonia. | Pneumonia=-1",
)

DISTRACTORS: tuple[tuple[str, ...], ...] = (
    (
        "The osseous structures are intact.",
        "Degenerative changes of the thoracic spine.",
        "Mild degenerative changes are noted in the spine.",
        "Visualized bones are unremarkable.",
        "Mild scoliosis of the thoracic spine.",
    ),
    (
        "The aorta is tortuous.",
        "Atherosclerotic calcifications of the aortic arch.",
        "The hilar contours are unremarkable.",
        "The trachea is midline.",
        "The upper abdomen is unremarkable.",
    ),
    (
        "The patient is slightly rotated.",
        "Exam is limited by patient positioning.",
        "Overlying monitoring wires are noted outside the patient.",
        "Technically adequate examination.",
    ),
)

RECOMMENDATIONS: tuple[str, ...] = (
    "Recommend clinical correlation.",
    "Follow-up radiographs are recommended to document resolution.",
    "Consider a dedicated lateral view for further evaluation.",
    "Findings were discussed with Dr. ___ by telephone at ___.",
)

INDICATIONS: tuple[str, ...] = (
    "Shortness of breath.",
    "___ year old with chest pain.",
    "Cough and fever.",
    "Preoperative evaluation.",
    "Evaluate for interval change.",
    "___-year-old with dyspnea, evaluate for edema or effusion.",
    "Fall.",
    "Rule out pneumonia.",
)
