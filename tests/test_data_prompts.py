"""What stands in a zero-shot prompt."""

from __future__ import annotations

import pytest

from rmtllmf_jax.common.errors import InputError
from rmtllmf_jax.data.prompts import prompt_classes, prompt_templates


def test_an_ensemble_has_the_tasks_own_templates():
    assert len(prompt_templates("resisc45", "ensemble")) == 18
    assert prompt_templates("resisc45", "single") == ("a photo of a {}",)
    assert prompt_templates("flowers", "ensemble") == ("a photo of a {}",)


def test_unknown_prompts_are_refused():
    with pytest.raises(InputError, match=r"unknown prompts 'ensembel'. Did you mean 'ensemble'"):
        prompt_templates("mnist", "ensembel")


def test_classes_are_spelt_as_clips_users_do_whatever_the_data_says():
    assert prompt_classes("eurosat", ["SeaLake", "AnnualCrop"]) == (
        "lake or sea",
        "annual crop land",
    )
    assert prompt_classes("eurosat", ["annual crop land"]) == ("annual crop land",)


def test_names_that_nobody_knows_stay():
    assert prompt_classes("resisc45", ["airplane", "two_merged"]) == ("airplane", "two merged")
    assert prompt_classes("flowers", ["red_rose"]) == ("red rose",)
