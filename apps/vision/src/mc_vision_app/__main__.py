"""``python -m mc_vision_app``."""

from mc_vision_app import main

main()
