"""``python -m mc_wearables_app``."""

from mc_wearables_app import main

main()
