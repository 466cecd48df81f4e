from pathlib import Path
def directory_tokenizer(source: Path, bos: int | None) -> dict[str, bytes]: return {}
