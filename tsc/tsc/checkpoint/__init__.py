"""Checkpoints: Hugging Face directories and GGUF files behind one interface. Importing this loads neither torch nor gguf."""

from tsc.checkpoint.checkpoint import Checkpoint, TensorInfo
from tsc.checkpoint.config import load_config
from tsc.checkpoint.opening import open_checkpoint

__all__ = ["Checkpoint", "TensorInfo", "load_config", "open_checkpoint"]
