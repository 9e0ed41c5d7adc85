"""Files of options by name, in YAML or JSON."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rmtllmf_jax.common.errors import InputError, first_line


def read_mapping(path: Path, what: str, expected: str) -> dict[str, Any]:
    """Return what a file of YAML or JSON has by name.

    **Arguments:**

    - `what`, `expected`: what the file should be and hold, for messages: a "recipe" of "options by
      name, as in `method: ties`".

    **Raises:** `InputError` that names the file if it cannot be read, is neither YAML nor JSON, is
    no mapping from names, or has a name twice.
    """
    from yaml import YAMLError, load

    try:
        content = load(path.expanduser().read_text(), _loader())
    except OSError as error:
        raise InputError(f"{path}: no {what} can be read there ({error.strerror}).") from error
    except (YAMLError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: neither YAML nor JSON ({first_line(error)}).") from error
    if not isinstance(content, dict) or not all(isinstance(key, str) for key in content):
        raise InputError(f"{path}: expected {expected}.")
    return content


def _loader() -> Any:
    from yaml import MappingNode, SafeLoader
    from yaml.constructor import ConstructorError

    class Loader(SafeLoader):
        """Refuses keys that are there twice, of which YAML's takes the last."""

        def construct_mapping(self, node: MappingNode, deep: bool = False) -> dict:
            seen = set()
            for key, _ in node.value:
                if key.value in seen:
                    raise ConstructorError(None, None, f"{key.value!r} is there twice")
                seen.add(key.value)
            return super().construct_mapping(node, deep)

    return Loader
