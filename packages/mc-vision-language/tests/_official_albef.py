"""Tiny checkpoints with the names and the layout of the official ALBEF code, and its forward pass read off those names."""

import torch
from torch.nn.functional import gelu, layer_norm, normalize

D, HIDDEN, WORDS, DEPTH, TEXT, FUSION, SIDE, PATCH, DIM, DECODER = 12, 16, 40, 2, 2, 3, 32, 8, 6, 2
SIZES = {"image_heads": 2, "text_heads": 2}
PRETRAINING, RETRIEVAL, VQA, NLVR2, ASSIGNMENT, ENTAILMENT = LAYOUTS = (
    "pretraining",
    "retrieval",
    "vqa",
    "nlvr2",
    "assignment",
    "entailment",
)


def official(layout=PRETRAINING, *, seed=0):
    """Names and shapes as the checkpoints have them; the teacher's end in ``_m`` and have other values."""
    generator = torch.Generator().manual_seed(seed)
    found = {}

    def random(*shape):
        return torch.randn(*shape, generator=generator) * 0.2

    def linear(name, out, into):
        found[f"{name}.weight"], found[f"{name}.bias"] = random(out, into), random(out)

    def norm(name, width):
        found[f"{name}.weight"], found[f"{name}.bias"] = 1 + random(width), random(width)

    def vision(vit):
        found[f"{vit}.cls_token"] = random(1, 1, D)
        found[f"{vit}.pos_embed"] = random(1, 1 + (SIDE // PATCH) ** 2, D)
        found[f"{vit}.patch_embed.proj.weight"] = random(D, 3, PATCH, PATCH)
        found[f"{vit}.patch_embed.proj.bias"] = random(D)
        for block in range(DEPTH):
            at = f"{vit}.blocks.{block}"
            norm(f"{at}.norm1", D)
            linear(f"{at}.attn.qkv", 3 * D, D)
            linear(f"{at}.attn.proj", D, D)
            norm(f"{at}.norm2", D)
            linear(f"{at}.mlp.fc1", 4 * D, D)
            linear(f"{at}.mlp.fc2", D, 4 * D)
        norm(f"{vit}.norm", D)

    def bert(prefix, layers, first_fusion, seen):
        at = f"{prefix}embeddings"
        found[f"{at}.position_ids"] = torch.arange(20)[None]
        for name, count in (("word", WORDS), ("position", 20), ("token_type", 2)):
            found[f"{at}.{name}_embeddings.weight"] = random(count, HIDDEN)
        norm(f"{at}.LayerNorm", HIDDEN)
        for layer in range(layers):
            at = f"{prefix}encoder.layer.{layer}"
            parts = [("attention", HIDDEN)] + ([("crossattention", seen)] if layer >= first_fusion else [])
            for kind, width in parts:
                linear(f"{at}.{kind}.self.query", HIDDEN, HIDDEN)
                linear(f"{at}.{kind}.self.key", HIDDEN, width)
                linear(f"{at}.{kind}.self.value", HIDDEN, width)
                linear(f"{at}.{kind}.output.dense", HIDDEN, HIDDEN)
                norm(f"{at}.{kind}.output.LayerNorm", HIDDEN)
            linear(f"{at}.intermediate.dense", 4 * HIDDEN, HIDDEN)
            linear(f"{at}.output.dense", HIDDEN, 4 * HIDDEN)
            norm(f"{at}.output.LayerNorm", HIDDEN)

    def word_head(module, words):
        at = f"{module}.cls.predictions"
        found[f"{at}.bias"] = random(WORDS)
        linear(f"{at}.transform.dense", HIDDEN, HIDDEN)
        norm(f"{at}.transform.LayerNorm", HIDDEN)
        found[f"{at}.decoder.weight"] = found[f"{words}embeddings.word_embeddings.weight"]
        found[f"{at}.decoder.bias"] = found[f"{at}.bias"]

    def share(prefix):
        for pair in range(FUSION):
            for name in ("key.weight", "key.bias", "value.weight", "value.bias"):
                first, second = (
                    f"{prefix}encoder.layer.{TEXT + 2 * pair + place}.crossattention.self.{name}" for place in (0, 1)
                )
                found[first] = found[second]

    doubled = layout in (NLVR2, ASSIGNMENT)
    for end in ("",) if layout == ASSIGNMENT else ("", "_m"):
        inner = f"text_encoder{end}." + ("bert." if layout == PRETRAINING else "")
        vision(f"visual_encoder{end}")
        bert(inner, TEXT + FUSION * (2 if doubled else 1), TEXT, D)
        if doubled:
            share(inner)
        if layout == PRETRAINING:
            word_head(f"text_encoder{end}", inner)
        if layout in (PRETRAINING, RETRIEVAL, ASSIGNMENT):
            linear(f"vision_proj{end}", DIM, D)
            linear(f"text_proj{end}", DIM, HIDDEN)
        if layout == VQA:
            bert(f"text_decoder{end}.bert.", DECODER, 0, HIDDEN)
            word_head(f"text_decoder{end}", f"text_decoder{end}.bert.")
        if layout in (NLVR2, ENTAILMENT):
            linear(f"cls_head{end}.0", HIDDEN, HIDDEN)
            linear(f"cls_head{end}.2", 2 if layout == NLVR2 else 3, HIDDEN)
    if layout == ASSIGNMENT:
        linear("ta_head", 3, HIDDEN)
    if layout in (PRETRAINING, RETRIEVAL, ASSIGNMENT):
        found["temp"] = torch.tensor(0.05)
    if layout in (PRETRAINING, RETRIEVAL):
        linear("itm_head", 2, HIDDEN)
        found["image_queue"], found["text_queue"] = random(DIM, 32), random(DIM, 32)
        found["queue_ptr" if layout == PRETRAINING else "ptr_queue"] = torch.zeros(1, dtype=torch.long)
    if layout == RETRIEVAL:
        found["idx_queue"] = torch.full((1, 32), -100)
    return found


class Literal:
    """The official forward pass of one picture and one text without padding, from tensors by their names."""

    def __init__(self, found, end=""):
        self.found, self.end = found, end
        self.bert = f"text_encoder{end}." + ("bert." if f"text_encoder{end}.cls.predictions.bias" in found else "")

    def linear(self, x, name):
        return x @ self.found[f"{name}.weight"].T + self.found[f"{name}.bias"]

    def norm(self, x, name, eps):
        return layer_norm(x, x.shape[-1:], self.found[f"{name}.weight"], self.found[f"{name}.bias"], eps)

    def attend(self, q, k, v, causal=False):
        def heads(x):
            return x.unflatten(-1, (2, -1)).transpose(0, 1)

        scores = heads(q) @ heads(k).transpose(1, 2) / (q.shape[-1] // 2) ** 0.5
        if causal:
            scores = scores + torch.full_like(scores, -torch.inf).triu(1)
        return (scores.softmax(-1) @ heads(v)).transpose(0, 1).flatten(1)

    def image(self, pixels):
        """(1 + P, D) of (3, S, S) in [0, 1]."""
        vit = f"visual_encoder{self.end}"
        mean = torch.tensor((0.48145466, 0.4578275, 0.40821073))[:, None, None]
        std = torch.tensor((0.26862954, 0.26130258, 0.27577711))[:, None, None]
        patches = ((pixels - mean) / std).unfold(1, PATCH, PATCH).unfold(2, PATCH, PATCH)
        patches = patches.permute(1, 2, 0, 3, 4).reshape(-1, 3 * PATCH * PATCH)
        kernel = self.found[f"{vit}.patch_embed.proj.weight"].reshape(D, -1)
        bias = self.found[f"{vit}.patch_embed.proj.bias"]
        x = torch.cat([self.found[f"{vit}.cls_token"][0], patches @ kernel.T + bias])
        x = x + self.found[f"{vit}.pos_embed"][0]
        for block in range(DEPTH):
            at = f"{vit}.blocks.{block}"
            q, k, v = self.linear(self.norm(x, f"{at}.norm1", 1e-6), f"{at}.attn.qkv").chunk(3, -1)
            x = x + self.linear(self.attend(q, k, v), f"{at}.attn.proj")
            inner = gelu(self.linear(self.norm(x, f"{at}.norm2", 1e-6), f"{at}.mlp.fc1"))
            x = x + self.linear(inner, f"{at}.mlp.fc2")
        return self.norm(x, f"{vit}.norm", 1e-6)

    def embedded(self, prefix, ids):
        at = f"{prefix}embeddings"
        t = self.found[f"{at}.word_embeddings.weight"][ids] + self.found[f"{at}.position_embeddings.weight"][: len(ids)]
        return self.norm(t + self.found[f"{at}.token_type_embeddings.weight"][0], f"{at}.LayerNorm", 1e-12)

    def layer(self, at, t, seen=None, causal=False):
        for kind, other in [("attention", t)] + ([] if seen is None else [("crossattention", seen)]):
            other = t if kind == "attention" else other
            made = self.attend(
                self.linear(t, f"{at}.{kind}.self.query"),
                self.linear(other, f"{at}.{kind}.self.key"),
                self.linear(other, f"{at}.{kind}.self.value"),
                causal and kind == "attention",
            )
            t = self.norm(t + self.linear(made, f"{at}.{kind}.output.dense"), f"{at}.{kind}.output.LayerNorm", 1e-12)
        inner = gelu(self.linear(t, f"{at}.intermediate.dense"))
        return self.norm(t + self.linear(inner, f"{at}.output.dense"), f"{at}.output.LayerNorm", 1e-12)

    def text(self, ids):
        """(L, h) of ids (L,) after the layers that read text alone."""
        t = self.embedded(self.bert, ids)
        for layer in range(TEXT):
            t = self.layer(f"{self.bert}encoder.layer.{layer}", t)
        return t

    def fused(self, t, *images):
        """(L, h) after the fusion layers, which look at the pictures in turn."""
        for place in range(FUSION * len(images)):
            t = self.layer(f"{self.bert}encoder.layer.{TEXT + place}", t, images[place % len(images)])
        return t

    def contrast_and_match(self, pixels, ids):
        """Unit features of both, and the logits of matching."""
        image, text = self.image(pixels), self.text(ids)
        z_v = normalize(self.linear(image[0], f"vision_proj{self.end}"), dim=0)
        z_t = normalize(self.linear(text[0], f"text_proj{self.end}"), dim=0)
        return z_v, z_t, self.linear(self.fused(text, image)[0], "itm_head")

    def judged(self, ids, *pictures):
        """Logits of the head of sentences about one picture or two."""
        fused = self.fused(self.text(ids), *map(self.image, pictures))[0]
        if "ta_head.weight" in self.found:
            return self.linear(fused, "ta_head")
        return self.linear(self.linear(fused, f"cls_head{self.end}.0").relu(), f"cls_head{self.end}.2")

    def word_logits(self, pixels, question, answer):
        """(L, V) of the words that follow each of an answer (L,), from the decoder."""
        seen = self.fused(self.text(question), self.image(pixels))
        module = f"text_decoder{self.end}"
        t = self.embedded(f"{module}.bert.", answer)
        for layer in range(DECODER):
            t = self.layer(f"{module}.bert.encoder.layer.{layer}", t, seen, causal=True)
        at = f"{module}.cls.predictions"
        t = self.norm(gelu(self.linear(t, f"{at}.transform.dense")), f"{at}.transform.LayerNorm", 1e-12)
        return t @ self.found[f"{at}.decoder.weight"].T + self.found[f"{at}.decoder.bias"]
