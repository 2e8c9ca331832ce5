"""Participants without their names; the means are the core's (:mod:`mc_core.privacy`)."""

from mc_core.privacy import Salt, plain_id, redact, salt_path

__all__ = ["Salt", "plain_id", "redact", "salt_path"]
