"""What a command line is refused with."""

from __future__ import annotations

from visllama.config.checks import check_caption, check_evaluate, check_train
from visllama.config.dry_run import check_decoding, check_machine, check_parts
from visllama.config.explain import explain
from visllama.training.assembly import build_assembly

CHECKS = {"train": check_train, "evaluate": check_evaluate, "caption": check_caption}


def refusal(compose_config, verb: str, *overrides: str) -> str | None:
    """Give what a command line is refused with, as the program would say it; None if it is not."""
    try:
        cfg = compose_config(verb, *overrides, *["check_only=true"] * (verb == "train"))
        CHECKS[verb](cfg)
        if verb == "train":
            check_parts(cfg)
            build_assembly(cfg)
        else:
            check_machine(cfg.trainer)
            check_decoding(cfg.decoding)
    except Exception as error:
        message = explain(error, overrides, verb)
        if message is None:
            raise
        return message
