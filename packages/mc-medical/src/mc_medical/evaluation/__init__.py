"""The protocols of the field: zero-shot, few-shot, retrieval, calibration."""
