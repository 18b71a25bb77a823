"""VL-BERT as one would write it in PyTorch today: the baseline of `benchmarks/peers.py`.

Its parts are BERT layers of Hugging Face with the fused attention of PyTorch, and ResNet-101, frozen batch norm and
RoIAlign of torchvision, in channels-last memory. Parameters have the names of the official VL-BERT, so the weights that
vlbert_jax writes load without a table.
"""

# PyTorch states that every part of a module is a tensor or a module.
# pyright: reportAttributeAccessIssue=false, reportCallIssue=false

import math

import torch
from torch import nn
from torch.nn import functional
from transformers import BertConfig
from transformers.models.bert.modeling_bert import BertEncoder, BertPredictionHeadTransform

from vlbert_jax.batch import END, IMG, NO_IMAGE, PIXEL_MEANS

LAYER_NORM_EPSILON = 1e-12


class Words(nn.Module):
    """The embeddings and the encoder (`vlbert` of the official code)."""

    def __init__(self, config: BertConfig):
        super().__init__()
        size = config.hidden_size
        self.word_embeddings = nn.Embedding(config.vocab_size, size)
        self.end_embedding = nn.Embedding(1, size)
        self.position_embeddings = nn.Embedding(config.max_position_embeddings, size)
        self.token_type_embeddings = nn.Embedding(config.type_vocab_size, size)
        self.embedding_LayerNorm = nn.LayerNorm(size, eps=LAYER_NORM_EPSILON)
        self.visual_ln_text = nn.LayerNorm(size, eps=LAYER_NORM_EPSILON)
        self.visual_ln_object = nn.LayerNorm(size, eps=LAYER_NORM_EPSILON)
        self.encoder = BertEncoder(config)


class Regions(nn.Module):
    """The region head (`image_feature_extractor` of the official code); `blocks` None reads precomputed features."""

    def __init__(self, size: int, dropout: float, blocks: list[int] | None):
        super().__init__()
        self.obj_downsample = nn.Sequential(nn.Dropout(dropout), nn.Linear(2 * 2048, size), nn.ReLU())
        if blocks is None:
            return
        import torchvision  # pyright: ignore[reportMissingImports]  # base_prec runs without it

        self.roi_align = torchvision.ops.roi_align
        norm = torchvision.ops.FrozenBatchNorm2d
        resnet = torchvision.models.ResNet(torchvision.models.resnet.Bottleneck, blocks, norm_layer=norm)
        self.roi_head_feature_extractor = resnet.layer4
        del resnet.layer4, resnet.fc, resnet.avgpool
        self.backbone = resnet
        for stage, stride in ((resnet.layer2, 2), (resnet.layer3, 2), (self.roi_head_feature_extractor, 1)):
            stage[0].conv1.stride, stage[0].conv2.stride = (stride, stride), (1, 1)  # as Caffe
            stage[0].downsample[0].stride = (stride, stride)
        for block in self.roi_head_feature_extractor:
            block.conv2.dilation, block.conv2.padding = (2, 2), (2, 2)

    def appearance(self, pixels: torch.Tensor, boxes: torch.Tensor) -> torch.Tensor:
        """Return [k, 2048] of the boxes [k, 5] (number of the image, x1 y1 x2 y2) in pixels [b, 3, y, x]."""
        resnet = self.backbone
        with torch.no_grad():  # the stem and C2 are frozen
            x = resnet.maxpool(resnet.relu(resnet.bn1(resnet.conv1(pixels))))
            x = resnet.layer1(x)
        x = resnet.layer3(resnet.layer2(x))
        x = self.roi_align(x, boxes, (14, 14), spatial_scale=1 / 16, sampling_ratio=1)
        return self.roi_head_feature_extractor(x.contiguous(memory_format=torch.channels_last)).mean((2, 3))


class Head(nn.Module):
    """Hidden layer and classes under the official names of a head."""

    def __init__(self, **layers: nn.Module):
        super().__init__()
        for name, layer in layers.items():
            self.add_module(name, layer)


class Baseline(nn.Module):
    """VL-BERT with the heads of pre-training (`answers` 0) or of question answering.

    A batch is a dict of tensors with the names and shapes of `vlbert_jax.batch.Batch`; `pixels` are [b, 3, y, x].
    """

    def __init__(self, config: BertConfig, blocks: list[int] | None = None, answers: int = 0):
        super().__init__()
        size, dropout = config.hidden_size, config.hidden_dropout_prob
        self.vlbert = Words(config)
        self.image_feature_extractor = Regions(size, dropout, blocks)
        self.object_linguistic_embeddings = nn.Embedding(1, size)
        if answers:
            transform = BertPredictionHeadTransform(config)
            self.final_mlp = nn.Sequential(transform, nn.Dropout(dropout), nn.Linear(size, answers))
            return
        self.object_mask_word_embedding = nn.Embedding(1, size)
        if blocks is None:  # otherwise pixels are hidden
            self.object_mask_visual_embedding = nn.Embedding(1, 2048)
        self.aux_text_visual_embedding = nn.Embedding(1, size)
        predictions = Head(transform=BertPredictionHeadTransform(config))
        predictions.bias = nn.Parameter(torch.zeros(config.vocab_size))
        self.vlbert.mlm_head = Head(predictions=predictions)
        hidden = Head(dense=nn.Linear(size, size))
        self.vlbert.mvrc_head = Head(transform=hidden, region_cls_pred=nn.Linear(size, 1601))

    def states(self, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        """Return the states [b, n, s, d] of all elements."""
        trunk, ids = self.vlbert, batch["token_ids"]
        b, n, s = ids.shape
        words = trunk.word_embeddings.weight
        special = [words, self.object_linguistic_embeddings.weight]
        masked = getattr(self, "object_mask_word_embedding", self.object_linguistic_embeddings)
        table = torch.cat([*special, masked.weight, trunk.end_embedding.weight])
        first = len(words) + IMG
        is_region, is_end = (ids >= first) & (ids != len(words) + END), ids == len(words) + END
        regions = self.regions(batch)
        text_only = getattr(self, "aux_text_visual_embedding", None)
        lone = regions.new_zeros(regions.shape[-1]) if text_only is None else text_only.weight[0]
        visual = torch.cat([regions, lone.expand(b, 1, -1)], 1)
        as_text, as_region = trunk.visual_ln_text(visual), trunk.visual_ln_object(regions)
        rows = torch.cat([as_text, as_region, torch.zeros_like(as_text[:, :1])], 1)
        r = regions.shape[1]
        row = torch.where(batch["region_ids"] == NO_IMAGE, r, batch["region_ids"])
        row = torch.where(is_region, batch["region_ids"] + r + 1, row)
        row = torch.where(is_end, 2 * r + 1, row).reshape(b, n * s)
        carried = rows.gather(1, row[..., None].expand(-1, -1, rows.shape[-1])).reshape(b, n, s, -1)
        x = functional.embedding(ids, table) + carried
        x = x + trunk.position_embeddings(batch["position_ids"]) + trunk.token_type_embeddings(batch["segment_ids"])
        x = functional.dropout(trunk.embedding_LayerNorm(x), trunk.encoder.config.hidden_dropout_prob, self.training)
        mask = batch["element_mask"].reshape(b * n, 1, 1, s).expand(-1, -1, s, -1)
        found = trunk.encoder(x.reshape(b * n, s, -1), attention_mask=mask)
        return found.last_hidden_state.reshape(x.shape)

    def regions(self, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        """Return the visual vector [b, r, d] of each region, zeros where there is none."""
        mask, head = batch["region_mask"], self.image_feature_extractor
        if "pixels" in batch:
            number = torch.arange(len(mask), device=mask.device)[:, None, None].expand(*mask.shape, 1)
            found = head.appearance(batch["pixels"], torch.cat([number, batch["boxes"]], -1)[mask])
            appearance = found.new_zeros(*mask.shape, found.shape[-1])
            appearance[mask] = found
        else:
            appearance = batch["region_features"]
            hidden = self.object_mask_visual_embedding.weight[0]
            appearance = torch.where(batch["region_hidden"][..., None], hidden, appearance)
        geometry = torch.where(mask[..., None], batch["box_geometry"], 0)
        states = head.obj_downsample(torch.cat([geometry, appearance], -1))
        return torch.where(mask[..., None], states, 0)

    def loss(self, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        """Return the sum of the means of the losses of masked words, of both kinds of sequences, and of regions."""
        states, head = self.states(batch), self.vlbert.mlm_head.predictions

        def at(states, positions):
            return states.gather(-2, positions[..., None].expand(*positions.shape, states.shape[-1]))

        def mean(losses, mask):
            return (losses * mask).sum() / mask.sum().clamp(min=1)

        hidden = head.transform(at(states, batch["mlm_positions"]))
        logits = functional.linear(hidden, self.vlbert.word_embeddings.weight, head.bias)
        losses = functional.cross_entropy(logits.flatten(0, 2), batch["mlm_labels"].flatten(), reduction="none")
        losses = losses.reshape(batch["mlm_labels"].shape)
        found = mean(losses[:, :1], batch["mlm_mask"][:, :1])
        found = found + mean(losses[:, 1:], batch["mlm_mask"][:, 1:])
        head = self.vlbert.mvrc_head
        hidden = functional.gelu(head.transform.dense(at(states[:, 0], batch["mrc_positions"])))
        scores = head.region_cls_pred(hidden).log_softmax(-1)
        return found + mean(-(scores * batch["mrc_targets"]).sum(-1), batch["mrc_mask"])

    def answers(self, batch: dict[str, torch.Tensor], positions: torch.Tensor) -> torch.Tensor:
        """Return the logits [b, answers] read at `positions` [b] of the first sequence."""
        states = self.states(batch)[:, 0]
        return self.final_mlp(states[torch.arange(len(states), device=states.device), positions])


def prepared(pixels: torch.Tensor) -> torch.Tensor:
    """Return uint8 RGB images [b, y, x, 3] as the ResNet reads them: BGR minus the pixel means."""
    return channels_first(pixels.flip(-1).float() - torch.tensor(PIXEL_MEANS, device=pixels.device))


def channels_first(pixels: torch.Tensor) -> torch.Tensor:
    """Return images [b, y, x, 3] as [b, 3, y, x], in the same memory (channels last)."""
    return pixels.permute(0, 3, 1, 2)


def bert_config(encoder) -> BertConfig:
    """Return the sizes of `config.model.encoder` as Hugging Face has them, with the fused attention of PyTorch."""
    config = BertConfig(
        vocab_size=encoder.vocab_size,
        hidden_size=encoder.hidden_size,
        num_hidden_layers=encoder.num_layers,
        num_attention_heads=encoder.num_heads,
        intermediate_size=encoder.mlp_size,
        max_position_embeddings=encoder.max_positions,
        type_vocab_size=3,
        hidden_dropout_prob=encoder.dropout_rate,
        attention_probs_dropout_prob=encoder.dropout_rate,
        layer_norm_eps=LAYER_NORM_EPSILON,
    )
    config._attn_implementation = "sdpa"
    return config


def train_step(model: Baseline, optimizer: torch.optim.Optimizer, clip_norm: float, batch: dict) -> float:
    """Make one update and return the loss."""
    optimizer.zero_grad(set_to_none=True)
    loss = model.loss(batch)
    loss.backward()
    nn.utils.clip_grad_norm_([p for p in model.parameters() if p.requires_grad], clip_norm or math.inf)
    optimizer.step()
    return loss.item()
