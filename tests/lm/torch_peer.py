"""The same transformer in PyTorch, as a competent user would write it: a peer for tests and
benchmarks. Shapes and names follow src/lm/model/parameter_layout.hpp; q, k, v and gate, up are fused."""

import json
import struct

import torch
import torch.nn.functional as F


class Peer(torch.nn.Module):
    def __init__(self, vocab, hidden, layers, heads, intermediate, feed_forward="swiglu",
                 eps=1e-5, theta=10000.0, length=1024, lory=()):
        """lory: experts of each feed-forward and tokens of a segment; nothing: plain ones"""
        super().__init__()
        self.experts, self.segment = lory or (0, 0)
        self.heads, self.eps, self.swiglu = heads, eps, feed_forward == "swiglu"
        dim = hidden // heads
        width = 2 * intermediate if self.swiglu else intermediate

        def weight(*shape):
            return torch.nn.Parameter(torch.randn(*shape) * 0.5 / hidden**0.5)

        self.embedding = weight(vocab, hidden)
        self.layers = torch.nn.ModuleList()
        for _ in range(layers):
            layer = torch.nn.Module()
            layer.qkv = weight(3 * hidden, hidden)
            layer.output = weight(hidden, hidden)
            if self.experts:
                layer.router = weight(self.experts, hidden)
            several = [self.experts] if self.experts else []
            layer.gate_up = weight(*several, width, hidden)
            layer.down = weight(*several, hidden, intermediate)
            layer.attention_norm = torch.nn.Parameter(torch.ones(hidden))
            layer.feed_forward_norm = torch.nn.Parameter(torch.ones(hidden))
            self.layers.append(layer)
        self.final_norm = torch.nn.Parameter(torch.ones(hidden))
        frequency = 1.0 / theta ** (torch.arange(0, dim, 2).float() / dim)
        angles = torch.outer(torch.arange(length).float(), frequency)
        angles = torch.cat([angles, angles], -1)
        self.register_buffer("cosine", angles.cos())
        self.register_buffer("sine", angles.sin())

    def rotate(self, x):
        length = x.shape[-2]
        low, high = x.chunk(2, -1)
        return x * self.cosine[:length] + torch.cat([-high, low], -1) * self.sine[:length]

    def activate(self, h):
        if not self.swiglu:
            return F.relu(h).square()
        gate, up = h.chunk(2, -1)
        return F.silu(gate) * up

    def merged_feed_forward(self, h, layer):
        """Lory's appendix A: each segment by the mean of the one before, the first by its own."""
        batch, length, hidden = h.shape
        segments = h.view(batch, length // self.segment, self.segment, hidden)
        e = F.softmax(F.linear(segments.mean(2), layer.router), -1)
        e = torch.cat([e[:, :1].detach(), e[:, :-1]], 1).flatten(0, 1)
        gate_up = (e @ layer.gate_up.flatten(1)).view(-1, *layer.gate_up.shape[1:])
        down = (e @ layer.down.flatten(1)).view(-1, *layer.down.shape[1:])
        up = torch.bmm(segments.flatten(0, 1), gate_up.transpose(1, 2))
        return torch.bmm(self.activate(up), down.transpose(1, 2)).view(batch, length, hidden)

    def forward(self, tokens):
        """[B, S] -> normalised hidden states [B, S, H]"""
        x = F.embedding(tokens, self.embedding)
        batch, length, hidden = x.shape
        for layer in self.layers:
            h = F.rms_norm(x, (hidden,), layer.attention_norm, self.eps)
            qkv = F.linear(h, layer.qkv).view(batch, length, 3 * self.heads, -1).transpose(1, 2)
            q, k, v = qkv.chunk(3, 1)
            h = F.scaled_dot_product_attention(self.rotate(q), self.rotate(k), v, is_causal=True)
            x = x + F.linear(h.transpose(1, 2).reshape(batch, length, hidden), layer.output)
            h = F.rms_norm(x, (hidden,), layer.feed_forward_norm, self.eps)
            if self.experts:
                x = x + self.merged_feed_forward(h, layer)
            else:
                x = x + F.linear(self.activate(F.linear(h, layer.gate_up)), layer.down)
        return F.rms_norm(x, (hidden,), self.final_norm, self.eps)

    def optimizer_groups(self, weight_decay):
        """Matrices decay, norms do not."""
        matrices = [p for p in self.parameters() if p.dim() >= 2]
        norms = [p for p in self.parameters() if p.dim() == 1]
        return [{"params": matrices, "weight_decay": weight_decay},
                {"params": norms, "weight_decay": 0.0}]

    def load(self, tensors):
        """Weights by the names of our safetensors files."""
        layer_names = {
            "qkv": [f"self_attn.{x}_proj.weight" for x in "qkv"],
            "output": ["self_attn.o_proj.weight"],
            "attention_norm": ["input_layernorm.weight"],
            "feed_forward_norm": ["post_attention_layernorm.weight"],
        }
        gate_up, down = ["gate_proj", "up_proj"][0 if self.swiglu else 1:], ["down_proj"]
        prefixes = [f"experts.{e}." for e in range(self.experts)] or [""]
        for name, matrices in (("gate_up", gate_up), ("down", down)):
            layer_names[name] = [f"mlp.{prefix}{matrix}.weight" for prefix in prefixes
                                 for matrix in matrices]
        if self.experts:
            layer_names["router"] = ["mlp.gate.weight"]
        with torch.no_grad():
            self.embedding.copy_(tensors["model.embed_tokens.weight"])
            self.final_norm.copy_(tensors["model.norm.weight"])
            for i, layer in enumerate(self.layers):
                for name, parts in layer_names.items():
                    parts = [tensors[f"model.layers.{i}.{part}"] for part in parts]
                    weight = getattr(layer, name)
                    weight.copy_(torch.cat(parts).view_as(weight))


def read_safetensors(path):
    """Float32 tensors by name, and the metadata."""
    with open(path, "rb") as file:
        (size,) = struct.unpack("<Q", file.read(8))
        header = json.loads(file.read(size))
        data = file.read()
    metadata = header.pop("__metadata__", {})
    tensors = {}
    for name, entry in header.items():
        begin, end = entry["data_offsets"]
        flat = torch.frombuffer(bytearray(data[begin:end]), dtype=torch.float32)
        tensors[name] = flat.view(entry["shape"])
    return tensors, metadata


def plain_loss(hidden, head, targets):
    return F.cross_entropy(F.linear(hidden, head).flatten(0, 1), targets.flatten())


def chunk_gradients(hidden, head, targets, scale):
    """Loss of some tokens, and its gradients; the logits live only here."""
    logits = hidden @ head.t()
    log_sum = logits.logsumexp(-1, keepdim=True)
    loss = (log_sum - logits.gather(1, targets[:, None])).sum()
    # 1 at the target by comparison, which fuses with the softmax where a scatter would not.
    one_hot = torch.arange(head.shape[0])[None] == targets[:, None]
    d_logits = ((logits - log_sum).exp() - one_hot.to(logits.dtype)) * scale
    return loss, d_logits @ head, d_logits.t() @ hidden


class ChunkedLoss(torch.autograd.Function):
    """Projection and cross-entropy, `chunk` tokens at a time, gradients in the forward pass."""

    gradients = staticmethod(chunk_gradients)  # or compiled

    @staticmethod
    def forward(context, hidden, head, targets, chunk):
        flat, targets = hidden.flatten(0, 1), targets.flatten()
        scale = 1.0 / targets.numel()
        loss, d_hidden, d_head = 0.0, torch.empty_like(flat), torch.zeros_like(head)
        for first in range(0, flat.shape[0], chunk):
            part = slice(first, first + chunk)
            part_loss, d_hidden[part], d_part = ChunkedLoss.gradients(flat[part], head,
                                                                      targets[part], scale)
            loss += part_loss
            d_head += d_part
        context.save_for_backward(d_hidden.view_as(hidden), d_head)
        return loss * scale

    @staticmethod
    def backward(context, gradient):
        d_hidden, d_head = context.saved_tensors
        return gradient * d_hidden, gradient * d_head, None, None


def chunk_log_probs(hidden, head, targets):
    logits = hidden @ head.t()
    return logits.gather(1, targets[:, None])[:, 0] - logits.logsumexp(-1)
