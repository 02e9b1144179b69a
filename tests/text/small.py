"""Small models of transformers, made on the spot, and batches for them."""

import warnings

import torch
import transformers as hf

with warnings.catch_warnings():  # of what transformers imports, where that is installed
    warnings.simplefilter("ignore")
    import transformers.modeling_utils
    import transformers.trainer

WORDS, LABELS = 99, 3


def _made(cls, config, seed):
    torch.manual_seed(seed)
    return cls(config).eval()


def bert(width=32, depth=3, cls=hf.BertForSequenceClassification, seed=0, **args):
    config = hf.BertConfig(
        vocab_size=WORDS, hidden_size=width, num_hidden_layers=depth, num_attention_heads=2,
        intermediate_size=2 * width, max_position_embeddings=64, **({"num_labels": LABELS} | args),
    )  # fmt: skip
    return _made(cls, config, seed)


def llama(width=32, depth=3, cls=hf.LlamaForCausalLM, seed=0, **args):
    config = hf.LlamaConfig(
        vocab_size=WORDS, hidden_size=width, num_hidden_layers=depth, num_attention_heads=4, num_key_value_heads=2,
        intermediate_size=2 * width, num_labels=LABELS, pad_token_id=0, max_position_embeddings=64, **args,
    )  # fmt: skip
    return _made(cls, config, seed)


def gpt2(width=32, depth=3, seed=0, **args):
    config = hf.GPT2Config(
        vocab_size=WORDS, n_embd=width, n_layer=depth, n_head=2, n_positions=64, pad_token_id=0, bos_token_id=1,
        eos_token_id=2, **args,
    )  # fmt: skip
    return _made(hf.GPT2LMHeadModel, config, seed)


def gemma3(width=32, depth=4, seed=0):
    config = hf.Gemma3TextConfig(
        vocab_size=WORDS, hidden_size=width, num_hidden_layers=depth, num_attention_heads=4, num_key_value_heads=2,
        head_dim=8, intermediate_size=64, sliding_window=4,
        layer_types=["sliding_attention", "full_attention"] * (depth // 2),
        max_position_embeddings=64,
    )  # fmt: skip
    return _made(hf.Gemma3ForCausalLM, config, seed)


def mamba(width=32, depth=3, seed=0):
    config = hf.MambaConfig(vocab_size=WORDS, hidden_size=width, num_hidden_layers=depth, state_size=4, pad_token_id=0)
    return _made(hf.MambaForCausalLM, config, seed)


def mpt(width=32, depth=3, seed=0):
    config = hf.MptConfig(vocab_size=WORDS, d_model=width, n_layers=depth, n_heads=2, max_seq_len=64, pad_token_id=0)
    return _made(hf.MptForCausalLM, config, seed)


def vit(width=32, depth=3, seed=0):
    config = hf.ViTConfig(
        hidden_size=width, num_hidden_layers=depth, num_attention_heads=2, intermediate_size=64, image_size=32,
        patch_size=8, num_labels=LABELS,
    )  # fmt: skip
    return _made(hf.ViTForImageClassification, config, seed)


def texts(rows=4, length=10, left=False, seed=0, labels=False):
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(5, WORDS, (rows, length), generator=generator)
    mask = torch.ones_like(ids)
    if rows > 1:
        padded = slice(0, 4) if left else slice(-4, None)
        ids[1, padded], mask[1, padded] = 0, 0
    batch = {"input_ids": ids, "attention_mask": mask}
    return batch | ({"labels": torch.randint(LABELS, (rows,), generator=generator)} if labels else {})


def rows_of(batch, index):
    return {name: value[index] for name, value in batch.items()}
