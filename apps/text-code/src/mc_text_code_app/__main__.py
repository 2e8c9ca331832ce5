"""``python -m mc_text_code_app``."""

from mc_text_code_app import main

main()
