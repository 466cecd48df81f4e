"""The whole corpus."""

from tests.parsing.corpus import gemma, glm, harmony, hermes, llama3, mistral, pythonic, qwen3_coder, sections, thinking

MODULES = (gemma, glm, harmony, hermes, llama3, mistral, pythonic, qwen3_coder, sections, thinking)
CASES = tuple(case for module in MODULES for case in module.CASES)
