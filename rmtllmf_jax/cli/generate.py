"""`rmtllmf generate`: what a language model writes."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import tyro

from rmtllmf_jax.cli.help_text import Place
from rmtllmf_jax.cli.options import Cache
from rmtllmf_jax.common.errors import InputError, require_non_negative, require_seed
from rmtllmf_jax.runs.environment import default_cache, use_compilation_cache

if TYPE_CHECKING:
    from rmtllmf_jax.models.generation import Greedy, Sampled


@dataclass(kw_only=True)
class Generate:
    """Print prompts and their continuation by a language model: Llama, Mistral, Qwen2 or Qwen3.

    Example: rmtllmf generate merged "Once upon a time" "One day" --tokens 40
    """

    directory: tyro.conf.Positional[Place]
    """The model with its tokenizer: a Hugging Face directory, as from `fuse`, or a hub id."""
    prompts: tyro.conf.Positional[tuple[str, ...]] = ()
    """Texts to continue."""
    tokens: int = 64
    """Maximum number of tokens to add to each prompt."""
    temperature: float = 0.0
    """0 always takes the most probable token; above 0, tokens are drawn from the softmax of the
    logits divided by it."""
    top_k: int | None = None
    """Draw from this many of the most probable tokens."""
    top_p: float = 1.0
    """Draw from the smallest set of tokens whose total probability reaches this value."""
    seed: int = 0
    """Seed of the draws."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Compute type; bfloat16 is for accelerators."""
    cache_dir: Cache = field(default_factory=default_cache)

    def run(self) -> None:
        """Run the sub-command."""
        if not self.prompts:
            raise InputError("generate needs a prompt: a text to continue.")
        sampler = self._sampler()
        require_seed("--seed", self.seed)
        use_compilation_cache(self.cache_dir)
        import jax

        from rmtllmf_jax.models.generation import generate
        from rmtllmf_jax.models.hub import local_directory
        from rmtllmf_jax.models.pretrained import load_decoder
        from rmtllmf_jax.models.text import end_tokens, read_tokenizer

        directory = local_directory(self.directory)
        decoder, params = load_decoder(directory, dtype=self.dtype)
        tokenizer: Any = read_tokenizer(directory, decoder.shape)
        prompts = tokenizer(list(self.prompts), verbose=False)["input_ids"]
        added = generate(
            decoder,
            params,
            prompts,
            self.tokens,
            sampler=sampler,
            key=jax.random.key(self.seed),
            end=end_tokens(tokenizer),
        )
        for prompt, more in zip(prompts, added):
            print(tokenizer.decode(prompt + more, skip_special_tokens=True).strip())

    def _sampler(self) -> Greedy | Sampled:
        from rmtllmf_jax.models.generation import Greedy, Sampled

        require_non_negative("--temperature", self.temperature)
        if self.temperature:
            return Sampled(self.temperature, self.top_k, self.top_p)
        if self.top_k is not None or self.top_p != 1.0:
            raise InputError("--top-k and --top-p are for draws: give --temperature above 0.")
        return Greedy()
