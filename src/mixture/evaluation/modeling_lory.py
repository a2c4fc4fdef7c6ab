"""Lory (Zhong et al. 2024) for transformers: a Llama whose feed-forwards are merged from experts,
anew for each segment of a text. A linear router turns the mean of the inputs of the segment before
(segment_routing "previous") or of the first ("prefix") into weights. The first segment weighs all
experts alike, so no token's logits depend on later tokens.

A row is one text: segments are counted from its first token, and padding goes behind it. B rows,
T tokens of a call, N tokens since the row began, H hidden, E experts.
"""

import torch
from torch import nn
from transformers.cache_utils import Cache, DynamicCache, DynamicLayer
from transformers.models.arcee.modeling_arcee import ArceeMLP
from transformers.models.llama.configuration_llama import LlamaConfig
from transformers.models.llama.modeling_llama import (LlamaDecoderLayer, LlamaForCausalLM,
                                                      LlamaMLP)


class LoryConfig(LlamaConfig):
    model_type = "lory"
    num_local_experts: int = 8
    segment_tokens: int = 256
    merged_layers: str = ""  # which are merged, from 0: "2-5,7"; empty: all
    segment_routing: str = "previous"  # or "prefix"
    first_segment: str = "own"  # by what it was merged in training; has no effect here

    def merges(self, layer):
        if not self.merged_layers:
            return True
        ranges = [part.partition("-") for part in self.merged_layers.split(",")]
        return any(int(first) <= layer <= int(last or first) for first, _, last in ranges)


def feed_forward(config):
    return LlamaMLP(config) if config.hidden_act == "silu" else ArceeMLP(config)


class LoryMLP(nn.Module):
    def __init__(self, config, layer):
        super().__init__()
        self.gated = config.hidden_act == "silu"
        self.segment_tokens = config.segment_tokens
        self.by_first = config.segment_routing == "prefix"
        self.place_in_cache = config.num_hidden_layers + layer
        experts = config.num_local_experts
        self.gate = nn.Linear(config.hidden_size, experts, bias=False)
        self.experts = nn.ModuleList(feed_forward(config) for _ in range(experts))

    def inputs_so_far(self, x, cache):
        """[B, N, H]. The cache keeps them as keys of a layer behind those of the model: what
        reorders or crops a cache, as beam search, then does the same to them."""
        if cache is None:
            return x
        while len(cache.layers) <= self.place_in_cache:
            cache.layers.append(DynamicLayer())
        keys, _ = cache.layers[self.place_in_cache].update(x[:, None], x[:, None, :, :0])
        return keys[:, 0]

    def weights(self, inputs, segment):
        """[B, E]"""
        if segment == 0:
            return inputs.new_full((len(inputs), len(self.experts)), 1 / len(self.experts))
        begin = 0 if self.by_first else (segment - 1) * self.segment_tokens
        mean = inputs[:, begin:begin + self.segment_tokens].mean(1)
        return self.gate(mean).softmax(-1, dtype=torch.float32).to(mean.dtype)

    def matrices(self, name):
        """[E, out, in]"""
        return torch.stack([expert.get_submodule(name).weight for expert in self.experts])

    def forward(self, x, cache):
        act = self.experts[0].act_fn
        gate = self.matrices("gate_proj") if self.gated else None
        up, down = self.matrices("up_proj"), self.matrices("down_proj")
        inputs = self.inputs_so_far(x, cache)
        begin = inputs.shape[1] - x.shape[1]
        outputs = []
        for segment in range(begin // self.segment_tokens,
                             (inputs.shape[1] - 1) // self.segment_tokens + 1):
            first = segment * self.segment_tokens - begin
            h = x[:, max(first, 0):first + self.segment_tokens]
            weights = self.weights(inputs, segment)

            def merged(h, matrices):
                return h @ torch.einsum("be,eoi->bio", weights, matrices)

            h = act(merged(h, gate)) * merged(h, up) if self.gated else act(merged(h, up))
            outputs.append(merged(h, down))
        return torch.cat(outputs, 1)


def cache_of(arguments):
    """By whatever name: transformers 5 changed it."""
    return next((value for value in arguments.values() if isinstance(value, Cache)), None)


class LoryDecoderLayer(LlamaDecoderLayer):
    def __init__(self, config, layer):
        super().__init__(config, layer)
        self.merges = config.merges(layer)
        self.mlp = LoryMLP(config, layer) if self.merges else feed_forward(config)

    def forward(self, x, **kwargs):
        x = x + self.self_attn(self.input_layernorm(x), **kwargs)[0]
        h = self.post_attention_layernorm(x)
        return x + (self.mlp(h, cache_of(kwargs)) if self.merges else self.mlp(h))


class LoryForCausalLM(LlamaForCausalLM):
    config_class = LoryConfig
    _no_split_modules = ["LoryDecoderLayer"]

    def __init__(self, config):
        super().__init__(config)
        self.model.layers = nn.ModuleList(
            LoryDecoderLayer(config, layer) for layer in range(config.num_hidden_layers))
        self.post_init()

    def forward(self, input_ids=None, attention_mask=None, position_ids=None, logits_to_keep=0,
                **kwargs):
        cache = cache_of(kwargs)
        if cache is not None and not isinstance(cache, DynamicCache):
            raise ValueError(f"Lory needs a DynamicCache, not a {type(cache).__name__}")
        if attention_mask is not None:
            if attention_mask.dim() != 2 or (attention_mask.long().diff() > 0).any():
                raise ValueError("Lory counts segments from a row's first token: give it a mask "
                                 "[rows, tokens] and pad behind texts, not before them")
        elif position_ids is not None and (position_ids.diff() != 1).any():
            raise ValueError("Lory takes a row for one text: do not pack several into it")
        return super().forward(input_ids=input_ids, attention_mask=attention_mask,
                               position_ids=position_ids, logits_to_keep=logits_to_keep, **kwargs)
