"""Labels of chest radiographs: CheXpert's fourteen observations, and what to do with the uncertain ones."""

from __future__ import annotations

OBSERVATIONS = (
    "No Finding",
    "Enlarged Cardiomediastinum",
    "Cardiomegaly",
    "Lung Opacity",
    "Lung Lesion",
    "Edema",
    "Consolidation",
    "Pneumonia",
    "Atelectasis",
    "Pneumothorax",
    "Pleural Effusion",
    "Pleural Other",
    "Fracture",
    "Support Devices",
)
"""The fourteen observations of CheXpert (Irvin et al. 2019, arXiv:1901.07031, table 1), in the order of its files."""
