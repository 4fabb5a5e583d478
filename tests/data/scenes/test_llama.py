from visllama.data.scenes.llama import train_llama, train_tokenizer


def test_tokenizer_is_byte_level_with_llamas_ids():
    tokenizer = train_tokenizer(400, num_documents=200)
    assert [tokenizer.convert_tokens_to_ids(t) for t in ("<pad>", "<s>", "<unk>", "</s>")] == [0, 1, 2, 3]
    for text in ("a small red ring", "🐱 [boi] \n ü"):
        assert tokenizer.decode(tokenizer(text, add_special_tokens=False)["input_ids"]) == text


def test_a_few_steps_learn():
    tokenizer = train_tokenizer(400, num_documents=200)
    losses = []

    def report(name, done, total, note):
        if note.startswith("loss"):
            losses.append(float(note.split()[1]))

    train_llama(tokenizer, report, width=32, layers=1, num_steps=30, batch_tokens=256, num_documents=200, lr=1e-2)
    assert len(losses) == 30 and losses[-1] < losses[0] - 2
