from visllama.config.evaluations import judging


def test_what_refers_to_another_key_is_found(compose_config):
    cfg = compose_config(
        "train", "decoding.max_new_tokens=${stage.max_text_tokens}", "paths.models=${name}/x", "name=a"
    )
    found = judging(cfg)
    assert found["decoding"]["max_new_tokens"] == cfg.stage.max_text_tokens and found["paths"]["models"] == "a/x"
    assert set(found) == {"trainer", "decoding", "plugins", "paths"} and found["plugins"] == []
