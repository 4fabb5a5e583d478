import pytest

from visllama.config.check_groups import check_counts
from visllama.errors import ConfigError


def test_a_name_says_that_a_key_of_ours_is_a_count(compose_config):
    cfg = compose_config("train", "model.connector.num_image_tokens=0")
    with pytest.raises(ConfigError, match=r"model\.connector\.num_image_tokens=0: must be a whole number, more than 0"):
        check_counts(cfg)


def test_the_names_in_a_class_of_the_users_are_theirs(compose_config):
    mine = "+data.sources.mine={_target_: mylab.Source, num_retries: 0, hidden_dim: none}"
    check_counts(compose_config("train", mine))


def test_no_loading_process_is_a_number_of_them_too(compose_config):
    check_counts(compose_config("train", "data.num_workers=0"))
