"""``python -m mc_vision_language_app``."""

from mc_vision_language_app import main

main()
