"""Options of Astrea's settings. Imports no torch."""

from __future__ import annotations

from typing import Any

from pydantic import create_model

from mc_core.engine.config import StrictModel
from mc_vision_language.methods.astrea.config import AstreaConfig

_LEFT_OUT = ("experts", "expert_features", "answers")  # a list of models, and what is filled in: for recipes
_FIELDS: dict[str, Any] = {
    name: (field.annotation, field) for name, field in AstreaConfig.model_fields.items() if name not in _LEFT_OUT
}
AstreaSettings: Any = create_model("AstreaSettings", __base__=StrictModel, **_FIELDS)
"""The settings that can be typed; the experts themselves are for a recipe to say."""
