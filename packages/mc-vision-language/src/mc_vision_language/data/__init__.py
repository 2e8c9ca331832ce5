"""Pictures with captions from tables, folders, tars, published annotation files and Hugging Face, as one type: :class:`Pairs`;
questions, statements, entailments and phrases about pictures, each as a type of its own.

Public names load on first use; importing this package loads neither torch nor Pillow.
"""

from typing import TYPE_CHECKING

from mc_core.lazy import attach

if TYPE_CHECKING:
    from mc_vision_language.data.annotated import AnnotatedPairs, Boxes
    from mc_vision_language.data.annotated_data import AnnotatedData
    from mc_vision_language.data.annotated_sources import open_annotated, scene_annotations
    from mc_vision_language.data.captions import clean_caption, names_sides, text_key
    from mc_vision_language.data.class_masks import ArrayMasks, ClassMasks, DrawnMasks, StoredMasks
    from mc_vision_language.data.images import (
        ArrayImages,
        FileImages,
        ImageSet,
        read_image,
        squashed,
    )
    from mc_vision_language.data.opening import UNDERSTOOD, open_pairs
    from mc_vision_language.data.options import CaptionOptions, ColumnOptions, ReadOptions, SplitOptions
    from mc_vision_language.data.pair_data import PairData
    from mc_vision_language.data.pairs import SPLITS, Pairs, divide, scene_pairs, shuffled_captions
    from mc_vision_language.data.phrases import Phrases, open_phrases
    from mc_vision_language.data.questions import AnswerList, Questions, open_questions
    from mc_vision_language.data.scene_tasks import scene_entailments, scene_phrases, scene_questions, scene_statements
    from mc_vision_language.data.statements import Entailments, Statements, open_entailments, open_statements
    from mc_vision_language.data.stored_images import HubImages, ParquetImages, TarImages
    from mc_vision_language.data.task_data import JudgedData, QuestionData
    from mc_vision_language.data.views import ImageViews

_NAMES = {
    "annotated": ["AnnotatedPairs", "Boxes"],
    "annotated_data": ["AnnotatedData"],
    "annotated_sources": ["open_annotated", "scene_annotations"],
    "class_masks": ["ArrayMasks", "ClassMasks", "DrawnMasks", "StoredMasks"],
    "captions": ["clean_caption", "names_sides", "text_key"],
    "images": ["ArrayImages", "FileImages", "ImageSet", "read_image", "squashed"],
    "options": ["CaptionOptions", "ColumnOptions", "ReadOptions", "SplitOptions"],
    "opening": ["UNDERSTOOD", "open_pairs"],
    "pair_data": ["PairData"],
    "pairs": ["SPLITS", "Pairs", "divide", "scene_pairs", "shuffled_captions"],
    "phrases": ["Phrases", "open_phrases"],
    "questions": ["AnswerList", "Questions", "open_questions"],
    "scene_tasks": ["scene_entailments", "scene_phrases", "scene_questions", "scene_statements"],
    "statements": ["Entailments", "Statements", "open_entailments", "open_statements"],
    "task_data": ["JudgedData", "QuestionData"],
    "stored_images": ["HubImages", "ParquetImages", "TarImages"],
    "views": ["ImageViews"],
}

__all__ = [
    "SPLITS",
    "UNDERSTOOD",
    "AnnotatedData",
    "AnnotatedPairs",
    "AnswerList",
    "ArrayImages",
    "ArrayMasks",
    "Boxes",
    "CaptionOptions",
    "ClassMasks",
    "ColumnOptions",
    "DrawnMasks",
    "Entailments",
    "FileImages",
    "HubImages",
    "ImageSet",
    "ImageViews",
    "JudgedData",
    "PairData",
    "Pairs",
    "ParquetImages",
    "Phrases",
    "QuestionData",
    "Questions",
    "ReadOptions",
    "SplitOptions",
    "Statements",
    "StoredMasks",
    "TarImages",
    "clean_caption",
    "divide",
    "names_sides",
    "open_annotated",
    "open_entailments",
    "open_pairs",
    "open_phrases",
    "open_questions",
    "open_statements",
    "read_image",
    "scene_annotations",
    "scene_entailments",
    "scene_pairs",
    "scene_phrases",
    "scene_questions",
    "scene_statements",
    "shuffled_captions",
    "squashed",
    "text_key",
]

__getattr__, __dir__ = attach(__name__, _NAMES)
