"""``python -m mc_medical_app``."""

from mc_medical_app import main

main()
