"""Adapters such as LoRA's: recognised, and refused as long as they are not understood."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

from rmtllmf_jax.common.errors import InputError

# Files of PEFT, and the factors of LoRA and its kin among the keys of tensors (q.lora_A.weight,
# to_q.lora.down.weight). A layer called w_lora is none.
_ADAPTER = re.compile(
    r"adapter_(?:config|model)\."
    r"|(?:.*[./])?(?:lora|hada|lokr|ia3|oft|boft)_"
    r"|.*lora[./](?:down|up)[./]"
)


def require_no_adapter(origin: Path | str, names: Iterable[str]) -> None:
    """Check that files or tensors of these names are a model and not an adapter to one.

    Sums and averages of factors are not sums and averages of their products: a merge of adapters,
    factor by factor, is another model than that of the models that they make.

    **Raises:** `InputError` that names the model and what gave the adapter away.
    """
    found = next((name for name in names if _ADAPTER.match(name)), None)
    if found is not None:
        raise InputError(
            f"{origin}: an adapter (LoRA or the like: {found}), whose factors cannot be added up; "
            "merge it into its base model (PEFT's merge_and_unload(), then save_pretrained) and "
            "name that."
        )
