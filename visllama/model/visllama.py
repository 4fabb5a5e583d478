"""`VisLlama`: an image becomes a few input vectors between two learned markers, and LLaMA continues after them.

Two words are used throughout. The *parts* of a model are those in `PARTS`, and the "adapter" (LoRA). A *span* is how an
image stands in `input_ids`: the ids `[boi] + K placeholders + [eoi]`, all negative, which
`visllama.text.tokens.image_span` returns.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Mapping
from contextlib import contextmanager, nullcontext
from inspect import signature
from typing import Any, Literal, NamedTuple, Protocol, cast

import torch
from jaxtyping import Float, Int, Num
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import Cache, DynamicCache, GenerationMixin, PreTrainedModel

from visllama.model.contracts import check_language_model, try_module
from visllama.model.language_model import LanguageModelSource, forget_decoding, input_embeddings, norm_in_double
from visllama.model.lora import adapters, as_in, attach_lora, is_adapter, merge_lora
from visllama.model.loss import TokenLoss, token_loss_sum
from visllama.model.vision_encoder import VisionEncoder

PARTS = ("vision_encoder", "connector", "markers", "language_model")
"""The attributes of a `VisLlama` that hold its tensors: three modules, and the parameter `markers`."""
ADAPTER = "adapter"
"""The name by which LoRA's tensors count as a part of their own, although they lie inside the language model."""

_GENERATE_PARAMETERS = signature(GenerationMixin.prepare_inputs_for_generation).parameters
_CACHE = "cache" if "cache" in _GENERATE_PARAMETERS else "past_key_values"
"""The name of `generate`'s argument for a cache: "cache" since transformers 5.24, "past_key_values" before."""


def part_of(name: str) -> str:
    """Return the part that a parameter or buffer belongs to: one of `PARTS`, or "adapter" for a tensor of LoRA.

    Args:
        name: Full name of the tensor, as `VisLlama.named_parameters()` has it: "connector.output.weight".
    """
    return ADAPTER if is_adapter(name) else name.split(".")[0]


def persistent_buffers(module: nn.Module) -> dict[str, Tensor]:
    """Return the buffers of a module that its `state_dict()` holds, by name: the tensors themselves, no copies.

    The buffers left out are those registered with `persistent=False`, which the module computes from its config.
    """
    stored = module.state_dict(keep_vars=True).keys()
    return {name: buffer for name, buffer in module.named_buffers() if name in stored}


def trained_buffers(model: VisLlama) -> dict[str, Tensor]:
    """Return the buffers that training may change: those in the `state_dict()` of each part in `model.trainable`.

    BatchNorm's statistics are such buffers.

    Returns:
        The tensors themselves, no copies, by their full names in the model ("connector.norm.running_mean").
    """
    buffers = {}
    for part in model.trainable:
        # The markers are a tensor, and the adapter lies in the language model: neither has buffers.
        module = getattr(model, part, None)
        if not isinstance(module, nn.Module):
            continue

        for name, buffer in persistent_buffers(module).items():
            buffers[f"{part}.{name}"] = buffer
    return buffers


def part_dtype(model: VisLlama, part: str, dtype: torch.dtype) -> torch.dtype:
    """Return the dtype that a part's weights are to have: `dtype` if the part is frozen, fp32 at least if it trains.

    Args:
        model: The model; its `trainable` says whether the part trains.
        part: "vision_encoder" or "language_model".
        dtype: Dtype that is asked for frozen weights.
    """
    if part in model.trainable:
        return torch.promote_types(dtype, torch.float32)
    return dtype


class VisLlamaOutput(NamedTuple):
    """What `VisLlama.forward` returns.

    Attributes:
        logits: Scores of each next token, for every position and every id of the vocabulary.
        loss_sum: The sum (no mean) of the losses of all supervised tokens; None if no labels were given. The loss of a
            token is the cross-entropy in nats, or what `VisLlama.token_loss` returns.
    """

    logits: Float[Tensor, "B T V"]
    loss_sum: Float[Tensor, ""] | None


class _ReadsFeatures(Protocol):
    """A connector or its class, by the kind of features that it reads."""

    consumes: Literal["pooled", "patch"]


class VisLlama(nn.Module):
    """A vision encoder, a connector, two markers and a language model, of which the parts in `trainable` learn.

    The markers are two vectors that stand before and after the vectors of each image in the language model's input.
    The constructor loads no published weights: the language model is then on the meta device, and so is an encoder of
    visllama's. Call `load_base_weights` before the model is used.

    Args:
        vision_encoder: Module that maps images to features.
        connector: Class of the connector, or a `functools.partial` of the class that sets further arguments. It is
            called with `vision_dim` (width of the features that it reads) and `language_dim` (D) by name.
        language_model: Object with the tokenizer, whose `build()` and `load()` make the language model.
        trainable: Names of the parts that learn, out of "vision_encoder", "connector", "markers", "language_model" and
            "adapter" (LoRA); all others are frozen. Other names are not refused, and have no effect.
        lora: Arguments of PEFT's `LoraConfig`; None for a model without LoRA.

    Attributes:
        token_loss: Function that returns the loss of each supervised token; None means the cross-entropy. Set it after
            the construction.
        trainable: Names of the parts that learn.
        lora: Arguments of PEFT's `LoraConfig`; None if there is no LoRA, or if it was merged.
        language_model_source: The argument `language_model`.
        tokenizer: The tokenizer of the language model.
        num_image_tokens: Number of vectors that the connector makes of one image (K).

    Raises:
        ValueError: If the connector's output on one image is not `(1, K, D)`, if K is not what the `partial` names, or
            if the connector has extra state besides parameters and buffers.
        ConfigError: If LoRA's arguments are refused (see `attach_lora`), or if `language_model.build()` returns no
            `PreTrainedModel` or the tokenizer has no end or padding token.
    """

    def __init__(
        self,
        vision_encoder: VisionEncoder,
        connector: Callable[..., nn.Module],
        language_model: LanguageModelSource,
        trainable: Iterable[str] = ("connector", "markers"),
        lora: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self.language_model_source = language_model
        self.trainable = tuple(trainable)
        self.lora = lora
        self.token_loss: TokenLoss | None = None

        # The order of the parts is that of the optimizer's parameters and of checkpoints: keep it.
        self.vision_encoder = vision_encoder
        meta_model = language_model.build()
        check_language_model(meta_model, language_model)
        self.language_model = self._with_lora(meta_model)
        self.tokenizer = language_model.tokenizer

        # The width of the features is the encoder's `pooled_dim` or `patch_dim`.
        connector_class = getattr(connector, "func", connector)
        feature_kind = _consumes(connector_class)
        vision_dim = getattr(vision_encoder, f"{feature_kind}_dim")
        language_dim = input_embeddings(self.language_model).embedding_dim
        self.connector = _build_connector(connector, vision_dim, language_dim)
        self.markers = nn.Parameter(torch.zeros(2, language_dim))

        self._unreached: frozenset[str] = frozenset()
        if "vision_encoder" in self.trainable:
            self._unreached = self._find_unreached()
        self.num_image_tokens = self._count_image_tokens(connector, language_dim)

        # This also puts back the mode of the modules that ran in eval mode above.
        self._freeze()

    @property
    def num_positions(self) -> int | None:
        """Greatest length of an input, in tokens and image vectors; None if the language model's config names none."""
        text_config = self.language_model.config.get_text_config()
        return getattr(text_config, "max_position_embeddings", None)

    @torch.no_grad()
    def _count_image_tokens(self, make_connector: Callable[..., nn.Module], language_dim: int) -> int:
        """Return K, the number of vectors that the connector makes of one image, by running it once on zeros.

        A connector that does not fit is thus found before any weight is loaded.

        Raises:
            ValueError: If its output is not `(1, K, D)`, if K is not the `num_image_tokens` of `make_connector`, or if
                the connector has extra state.
        """
        encoder = self.vision_encoder
        feature_shapes = {
            "pooled": (encoder.pooled_dim,),
            "patch": (encoder.num_patches, encoder.patch_dim),
        }
        feature_shape = feature_shapes[_consumes(self.connector)]
        first_tensor = next(self.connector.parameters(), self.markers)
        features = torch.zeros(1, *feature_shape, device=first_tensor.device)
        image_embeds = try_module(self.connector, features)
        shape = tuple(image_embeds.shape)

        keywords = getattr(make_connector, "keywords", {})
        configured = keywords.get("num_image_tokens")
        is_one_image = len(shape) == 3 and shape[0] == 1
        fits = is_one_image and shape[1] > 0 and shape[2] == language_dim
        if not fits or configured not in (None, shape[1]):
            connector_name = type(self.connector).__name__
            needed = "K" if configured is None else configured
            raise ValueError(
                f"num_image_tokens={configured} does not fit: of one image {connector_name} makes {shape}, and "
                f"(1, {needed}, {language_dim}) is needed"
            )

        # Extra state may be any object, which a safetensors file cannot hold.
        for name in self.connector.state_dict():
            if name.endswith("_extra_state"):
                raise ValueError(f"{name}: weights hold parameters and buffers alone: register it as a buffer")
        return shape[1]

    def _find_unreached(self) -> frozenset[str]:
        """Return the names of the encoder's parameters that get no gradient from the features that the connector reads.

        CLIP's last layer is an example, where patches of the layer before it are read. Such parameters stay frozen:
        they cannot learn, and ranks would wait for their gradients.
        """
        parameter_of = dict(self.vision_encoder.named_parameters(prefix="vision_encoder"))
        parameters = tuple(parameter_of.values())

        size = self.vision_encoder.transform.size_px
        image = parameters[0].new_zeros(1, 3, size, size)
        all_features = try_module(self.vision_encoder, image)
        features = getattr(all_features, _consumes(self.connector))
        gradients = torch.autograd.grad(features.sum(), parameters, allow_unused=True)

        unreached = set()
        for name, gradient in zip(parameter_of, gradients, strict=True):
            if gradient is None:
                unreached.add(name)
        return frozenset(unreached)

    def _with_lora(self, language_model: PreTrainedModel) -> PreTrainedModel:
        """Attach new adapters to a language model in place, if `lora` is set, and return the model."""
        if self.lora is None:
            return language_model
        return attach_lora(language_model, self.lora)

    def _freeze(self) -> None:
        """Set `requires_grad` of all parameters by `trainable`, and put the frozen parts into eval mode."""
        for name, parameter in self.named_parameters():
            part_learns = part_of(name) in self.trainable
            parameter.requires_grad_(part_learns and name not in self._unreached)
        self.train(self.training)

    def load_base_weights(self, dtype: torch.dtype = torch.float32, as_stored: bool = False) -> VisLlama:
        """Load the published weights of encoder and language model into this model, and return the model.

        The connector's weights stay as they are. Both markers are set to the mean of the language model's embeddings,
        and LoRA's adapters, where there are any, are made anew. Files are read from disk, or downloaded from the hub
        if the path of a part is a hub id that is not in the cache.

        Args:
            dtype: Dtype of the frozen weights. The weights of a part that trains are fp32 at least. With fp64 and
                without `as_stored`, all parameters and buffers become fp64.
            as_stored: Whether to leave the weights in the dtype of their files, mapped from disk and not copied into
                memory. `sharding.shard` or `sharding.cast_weights` has to convert them to `dtype` afterwards.

        Raises:
            ConfigError: If the weights of one of visllama's own encoders or language models cannot be read.
        """
        vision_dtype = part_dtype(self, "vision_encoder", dtype)
        language_dtype = part_dtype(self, "language_model", dtype)
        self.vision_encoder.load_base_weights("auto" if as_stored else vision_dtype)
        language_model = self.language_model_source.load("auto" if as_stored else language_dtype)
        forget_decoding(language_model, self.tokenizer)
        if dtype == torch.float64:
            norm_in_double(language_model)

        # DoRA computes its magnitudes from the weights, so there they cannot be replaced by stand-ins.
        uses_dora = self.lora is not None and self.lora.get("use_dora")
        stands_in = as_stored and not uses_dora
        with as_in(language_model, language_dtype) if stands_in else nullcontext():
            self.language_model = self._with_lora(language_model)

        self._set_markers(language_dtype)
        if dtype == torch.float64 and not as_stored:
            self.double()
        self._freeze()
        return self

    @torch.no_grad()
    def _set_markers(self, dtype: torch.dtype) -> None:
        """Set both markers to the mean of the language model's embeddings, which are rounded to a dtype before."""
        # Some models (Gemma 3) scale their embeddings, so the module is called instead of reading its weight.
        embeddings = input_embeddings(self.language_model)
        all_ids = torch.arange(embeddings.num_embeddings, device=embeddings.weight.device)
        all_embeddings = embeddings(all_ids).to(dtype)

        mean = all_embeddings.mean(0, dtype=torch.float32)
        self.markers.copy_(mean.expand(2, -1))

    def train(self, mode: bool = True) -> VisLlama:
        """Put the parts that learn into training mode (`mode=True`) or eval mode, and return the model.

        Frozen parts are in eval mode in either case. An adapter that learns follows `mode`.
        """
        super().train(mode)
        for name in PARTS:
            part = getattr(self, name)
            if isinstance(part, nn.Module) and name not in self.trainable:
                part.eval()

        # An adapter lies in the frozen language model but has a dropout of its own.
        for _, adapter in adapters(self.language_model):
            assert isinstance(adapter, nn.Module)
            adapter.train(mode and ADAPTER in self.trainable)
        return self

    def merge_adapter(self) -> VisLlama:
        """Add LoRA's matrices to the language model's weights in place, remove the adapters, and return the model.

        The merged model computes the same up to rounding, in less time; the adapters cannot be trained any more. A
        model without adapters is left as it is.
        """
        merge_lora(self.language_model)
        self.lora = None
        return self

    def encode_images(self, pixel_values: Num[Tensor, "N C H W"]) -> Float[Tensor, "N K D"]:
        """Return the K vectors of each image, which the connector makes of the encoder's features.

        Args:
            pixel_values: Images of the encoder's size on the model's device: uint8 pixels, or floats that are already
                normalised by the encoder's mean and standard deviation.
        """
        # A frozen encoder keeps no activations for a backward pass.
        encoder_learns = torch.is_grad_enabled() and "vision_encoder" in self.trainable
        with torch.set_grad_enabled(encoder_learns):
            all_features = self.vision_encoder(pixel_values)
            features = getattr(all_features, _consumes(self.connector))

        # The other kind of features is not needed while the connector runs.
        del all_features
        connector_dtype = next(self.connector.parameters()).dtype
        return self.connector(features.to(connector_dtype))

    def embed(
        self,
        input_ids: Int[Tensor, "B T"],
        pixel_values: Num[Tensor, "N C H W"],
        image_of_span: Int[Tensor, " S"] | None = None,
    ) -> Float[Tensor, "B T D"]:
        """Return the language model's input: embeddings of the text, and vectors of the images in place of the spans.

        Args:
            input_ids: Token ids. An image stands in them as one *span*, the negative ids that `image_span` returns:
                `[boi] + K placeholders + [eoi]`.
            pixel_values: Images: uint8 pixels, or floats that are already normalised. A batch without spans takes one
                image of any content, which changes nothing.
            image_of_span: For each span, row by row, the index of its image in `pixel_values`; several spans may show
                one image, which is encoded once. None means that the first span shows the first image, and so on.
        """
        with self._without_statistics(input_ids, pixel_values):
            image_embeds = self.encode_images(pixel_values)
        if image_of_span is not None:
            image_embeds = image_embeds[image_of_span]
        return self.splice(input_ids, image_embeds)

    def splice(self, input_ids: Int[Tensor, "B T"], image_embeds: Float[Tensor, "N K D"]) -> Float[Tensor, "B T D"]:
        """Return the language model's input, as `embed` does, from images that were encoded before.

        Each span becomes the first marker, the K vectors of its image, and the second marker.

        Args:
            input_ids: Token ids. An image stands in them as one *span*, the negative ids that `image_span` returns:
                `[boi] + K placeholders + [eoi]`.
            image_embeds: The vectors of each image, as `encode_images` returns them. The first span, row by row, takes
                the first image, and so on. Images beyond the last span do not appear, and their gradients are zero;
                there must not be fewer images than spans.
        """
        markers = self.markers.expand(len(image_embeds), 2, -1)
        boi, eoi = markers.unsqueeze(2).unbind(1)
        spans = torch.cat([boi, image_embeds, eoi], dim=1)

        # The ids of an image span are negative: they stand for no row of the embeddings, and are overwritten.
        embed_tokens = input_embeddings(self.language_model)
        text = embed_tokens(input_ids.clamp(min=0))
        is_image = (input_ids < 0).unsqueeze(-1)
        return text.masked_scatter(is_image, spans.to(text.dtype))

    @contextmanager
    def _without_statistics(
        self, input_ids: Int[Tensor, "B T"], pixel_values: Num[Tensor, "N C H W"]
    ) -> Generator[None, None, None]:
        """Keep the connector in eval mode inside the `with` block if the batch has no span and one image, a dummy.

        The connector's statistics and counters (BatchNorm's) are then of real images alone. Any other batch, and a
        connector without buffers, runs as usual.
        """
        has_buffers = next(self.connector.buffers(), None) is not None
        may_be_dummy = self.connector.training and has_buffers and len(pixel_values) == 1

        # Reading the ids has to wait for the GPU, so it comes last, and only for a batch with a single image.
        is_dummy = may_be_dummy and not bool((input_ids < 0).any())
        if not is_dummy:
            yield
            return

        self.connector.eval()
        try:
            yield
        finally:
            self.connector.train()

    def forward(
        self,
        input_ids: Int[Tensor, "B T"],
        pixel_values: Num[Tensor, "N C H W"],
        attention_mask: Int[Tensor, "B T"] | None = None,
        labels: Int[Tensor, "B T"] | None = None,
    ) -> VisLlamaOutput:
        """Return the logits of each next token and, if labels are given, the summed loss of the supervised tokens.

        Args:
            input_ids: Token ids. An image stands in them as one *span*, the negative ids that `image_span` returns:
                `[boi] + K placeholders + [eoi]`. The first span, row by row, shows the first image, and so on.
            pixel_values: Images: uint8 pixels, or floats that are already normalised. A batch without spans takes one
                image of any content, which changes nothing.
            attention_mask: 1 on tokens, 0 on padding; not needed if all padding is on the right.
            labels: The same ids as `input_ids` at the tokens to learn (the supervised ones), and IGNORE_INDEX (-100)
                elsewhere. They are shifted here, not by the caller.
        """
        inputs_embeds = self.embed(input_ids, pixel_values)
        logits = self.language_model(inputs_embeds=inputs_embeds, attention_mask=attention_mask, use_cache=False).logits
        loss_sum = None if labels is None else token_loss_sum(logits, labels, self.token_loss)
        return VisLlamaOutput(logits, loss_sum)

    def new_cache(self) -> Cache:
        """Return a new, empty cache to pass to `generate` or `write_on`, call after call of one conversation.

        Each call adds the attention keys and values of the tokens that it has read and written.
        """
        decoder_config = self.language_model.config.get_text_config(decoder=True)
        return DynamicCache(config=decoder_config)

    @torch.no_grad()
    def generate(
        self,
        input_ids: Int[Tensor, "B T"],
        pixel_values: Num[Tensor, "N C H W"],
        attention_mask: Int[Tensor, "B T"],
        cache: Cache | None = None,
        image_of_span: Int[Tensor, " S"] | None = None,
        **decoding: Any,
    ) -> Int[Tensor, "B L"]:
        """Continue token ids and images by text, and return the ids of the new tokens alone.

        The model writes greedily unless `decoding` says otherwise. Call `eval()` before it: the mode is not changed.

        Args:
            input_ids: Token ids to continue, padded on the left. An image stands in them as one *span*, the ids
                `[boi] + K placeholders + [eoi]` that `image_span` returns. With a cache, pass only the ids after the
                tokens that the cache holds.
            pixel_values: Images of the spans in `input_ids`: uint8 pixels, or floats that are already normalised. A
                batch without spans takes one image of any content, which changes nothing.
            attention_mask: 1 on tokens, 0 on padding; it has the shape of `input_ids`.
            cache: A cache from `new_cache()`, which earlier calls may have filled; None for a single call. It works for
                one unpadded sequence (B = 1). It is changed: the call adds `input_ids` and all new tokens but the last.
            image_of_span: For each span, row by row, the index of its image in `pixel_values`; several spans may show
                one image, which is encoded once. None means that the first span shows the first image, and so on.
            decoding: Further arguments of transformers' `generate`: `max_new_tokens` (20 if it is not given),
                `num_beams`, `do_sample`, ...

        Returns:
            One row of new ids for each row of `input_ids`, with the end token. A row that ends before the longest one
            is filled up with the tokenizer's padding token.
        """
        inputs_embeds = self.embed(input_ids, pixel_values, image_of_span)
        return self.write_on(inputs_embeds, attention_mask, cache, **decoding)

    @torch.no_grad()
    def write_on(
        self,
        inputs_embeds: Float[Tensor, "B T D"],
        attention_mask: Int[Tensor, "B T"],
        cache: Cache | None = None,
        **decoding: Any,
    ) -> Int[Tensor, "B L"]:
        """Continue input embeddings by text, as `generate` continues ids, and return the ids of the new tokens alone.

        Args:
            inputs_embeds: Input of the language model, as `embed` or `splice` returns it for ids padded on the left.
            attention_mask: 1 on tokens, 0 on padding.
            cache: A cache from `new_cache()`, which earlier calls may have filled; None for a single call. It works for
                one unpadded sequence (B = 1). It is changed: the call adds the inputs and all new tokens but the last.
            decoding: Further arguments of transformers' `generate`: `max_new_tokens` (20 if it is not given),
                `num_beams`, `do_sample`, ...

        Returns:
            One row of new ids for each row of the inputs, with the end token. A row that ends before the longest one is
            filled up with the tokenizer's padding token.
        """
        if cache is not None:
            # transformers takes the inputs from the start and cuts off as many as the cache holds. Only the length of
            # that part counts, so zeros stand in for it.
            num_cached = cache.get_seq_length()
            inputs_embeds = F.pad(inputs_embeds, (0, 0, num_cached, 0))
            attention_mask = F.pad(attention_mask, (num_cached, 0), value=1)
            decoding[_CACHE] = cache

        # A causal language model of transformers has `generate` from this class.
        language_model = cast(GenerationMixin, self.language_model)
        return language_model.generate(
            inputs_embeds=inputs_embeds,
            attention_mask=attention_mask,
            **decoding,
        )


def _consumes(connector: object) -> Literal["pooled", "patch"]:
    """Return the kind of features that a connector, or a class of connectors, reads."""
    return cast(_ReadsFeatures, connector).consumes


def _build_connector(connector: Callable[..., nn.Module], vision_dim: int, language_dim: int) -> nn.Module:
    """Build the connector on torch's present default device (the caller may have set the meta device).

    A connector whose constructor computes with numbers cannot be built on the meta device, and is built on the CPU.
    """
    try:
        return connector(vision_dim=vision_dim, language_dim=language_dim)
    except RuntimeError as error:
        if "meta" not in str(error):
            raise
        with torch.device("cpu"):
            return connector(vision_dim=vision_dim, language_dim=language_dim)
