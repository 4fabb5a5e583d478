from hydra.core.config_store import ConfigStore

from visllama.config.schema import PrepareConfig, TrainConfig, conf_dir, key_names, read_conf, register


def test_the_yaml_files_lie_in_the_folder_of_the_configuration():
    assert (conf_dir() / "train.yaml").is_file() and (conf_dir() / "optim" / "adamw.yaml").is_file()


def test_references_are_read_as_they_are_written():
    assert read_conf("logger/wandb.yaml")["group"] == "${name}"


def test_what_is_filled_in_later_is_no_key():
    assert "judged_on" not in key_names(TrainConfig) and "callbacks" in key_names(TrainConfig)
    assert "keys" not in key_names(PrepareConfig)


def test_registering_again_changes_nothing():
    register()
    before = set(ConfigStore.instance().repo)
    register()
    assert set(ConfigStore.instance().repo) == before
