from tsc.checkpoint.gguf_header import GgufHeader
def gguf_tokenizer(header: GgufHeader) -> dict[str, bytes]: return {}
