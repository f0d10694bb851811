"""Other people's methods, as settings and hooks of the same edit."""

from dragsa.methods.lora import Adapted, adapt
from dragsa.methods.masactrl import check_object_words, control_hook
from dragsa.methods.prompt_to_prompt import PromptEdit, prompt_edit

__all__ = ["Adapted", "PromptEdit", "adapt", "check_object_words", "control_hook", "prompt_edit"]
