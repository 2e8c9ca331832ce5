"""``python -m mc_remote_sensing_app``."""

from mc_remote_sensing_app import main

main()
