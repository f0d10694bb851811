"""Other people's methods, as settings and hooks of the same edit."""

from dragsa.methods.free_drag import FreeDrag
from dragsa.methods.lora import Adapted, adapt
from dragsa.methods.lora import apply_to as apply_lora
from dragsa.methods.masactrl import check_object_words, control_at
from dragsa.methods.prompt_to_prompt import PromptEdit, prompt_edit

__all__ = ["Adapted", "FreeDrag", "PromptEdit", "adapt", "apply_lora", "check_object_words", "control_at"]
__all__ += ["prompt_edit"]
