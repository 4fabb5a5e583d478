from visllama.config.invocation import invocation, run_folder


def test_it_holds_what_was_typed_and_where_the_configs_are(compose_config, tmp_path):
    compose_config("train", "optim.lr=0.5", "name=a", config_dir=tmp_path)
    found = invocation()
    assert found.verb == "train" and not found.is_of_sweep
    assert found.overrides == ["optim.lr=0.5", "name=a"]
    assert found.options == [f"hydra.searchpath=[file://{tmp_path}]"]
    assert found.command == found.options + found.overrides
    assert run_folder() == tmp_path


def test_a_job_knows_nothing_of_the_grid_that_it_is_of(compose_config):
    """Another rank, or the job when it goes on, would be a sweep again."""
    compose_config("train", "sweep=optim_lr", "optim.lr=0.5")
    assert invocation().overrides == ["optim.lr=0.5"]
