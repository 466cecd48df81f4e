"""Write NAME.tsa directories: whole or not at all, byte for byte the same for the same input. Importing this does not load torch."""

from tsc.artifact.stream import SafetensorsStream
from tsc.artifact.vocabulary import split_tokenizer
from tsc.artifact.writer import ArtifactWriter

__all__ = ["ArtifactWriter", "SafetensorsStream", "split_tokenizer"]
