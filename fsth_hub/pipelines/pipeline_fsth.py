"""Portraits and a driving clip in, a talking head out: embed a person once, then drive them with many clips."""

import copy
import inspect
import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import replace
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Literal, Self

import diffusers
import numpy as np
import torch
from diffusers import DiffusionPipeline
from PIL import Image
from torch import nn
from transformers import PreTrainedModel

from ..checks import check_number
from ..landmarks import LandmarkDetector, get_detector
from ..landmarks.expression import Expression
from ..landmarks.likeness import warn_of_strangers
from ..landmarks.motion import MotionMode
from ..landmarks.portrait_picking import DEFAULT_SHOTS, MAX_SHOTS
from ..landmarks.smoothing import DEFAULT_SMOOTHING
from ..media.containers import ClipFile
from ..media.frames import Frames
from ..media.motion_files import is_motion
from ..media.reading import Clip, open_clip
from ..media.sound import read_sound
from ..models.cropping import CropBox
from ..models.downloading import fetch
from ..models.errors import FsthError
from ..models.facial_components import FsthFacialComponents
from ..models.folding import fold
from ..models.image_loading import Picture
from ..models.image_processing_fsth import FsthImageProcessor
from ..models.modeling_fsth import (
    FsthDiscriminator,
    FsthEmbedder,
    FsthGenerator,
    FsthPreTrainedModel,
    ModelSource,
    is_hooked,
)
from ..models.source_skips import FsthSources
from ..provenance.credentials import Origin, check_credentials
from . import parallel
from .caching import Cache, owner_of, weights_state
from .delivery import deliver
from .driving import DrivingMotion, adapt_motion, read_motion
from .engines import Engine, check_engine, compiled_components, compiled_generator, pick_engine
from .group import Faces, animate_group, check_faces, check_people
from .identity import FsthIdentity, FsthTunedPerson
from .inputs import check_batch_size, check_inputs, check_size
from .loading import (
    BUNDLED_MODEL,
    INDEX,
    check_components,
    check_fit,
    class_names,
    forget,
    loading_error,
    merged_folder,
    source_of,
)
from .names import DEFAULT_SIZE
from .person import FsthPerson
from .pipeline_output import FsthPipelineOutput, FsthReport
from .portrait_picking import (
    PickedPortrait,
    Portrait,
    files_of,
    list_portraits,
    pick_from_clips,
    pick_portraits,
)
from .portraits import cut_heads, cut_mattes, embed_pictures, for_inference
from .tuning import bind, check_discriminator, tune


NUM_KEPT_GENERATORS = 4  # ready for inference: the pipeline's own, and people's

Driving = ClipFile | Frames | Clip


class FsthPipeline(DiffusionPipeline):
    """
    Few-shot talking heads (arXiv 1905.08233): one or more portraits of a person, driven by somebody else's clip.

    ```python
    pipe = FsthPipeline.from_pretrained()
    pipe("portrait.jpg", "driver.mp4").save("result.mp4")
    ```

    Args:
        embedder ([`FsthEmbedder`]): portraits to AdaIN parameters.
        generator ([`FsthGenerator`]): landmark drawings to frames.
        image_processor ([`FsthImageProcessor`]): crops pictures and rasterizes landmarks.
        discriminator ([`FsthDiscriminator`], *optional*): used by fine-tuning only.
        facial_components ([`FsthFacialComponents`], *optional*): mouths and eyes; with source skips only.
        detector ([`LandmarkDetector`], *optional*):
            What finds landmarks, such as that of `get_detector(name)`; by default the one that works offline. It is
            not saved with the pipeline.
    """

    model_cpu_offload_seq = "embedder->generator->facial_components"
    _optional_components = ["discriminator", "facial_components", "detector"]

    def __init__(
        self,
        embedder: FsthEmbedder,
        generator: FsthGenerator,
        image_processor: FsthImageProcessor,
        discriminator: FsthDiscriminator | None = None,
        facial_components: FsthFacialComponents | None = None,
        detector: LandmarkDetector | None = None,
    ):
        super().__init__()
        self.register_modules(
            embedder=embedder,
            generator=generator,
            image_processor=image_processor,
            discriminator=discriminator,
            facial_components=facial_components,
        )
        self.register_to_config(detector=(None, None))  # a component that is not saved
        self.detector = get_detector() if detector is None else detector
        self.size = generator.config.image_size
        self.engine = "auto"
        self._generators, self._components = Cache(NUM_KEPT_GENERATORS), Cache(NUM_KEPT_GENERATORS)
        self._compiled = Cache(2 * NUM_KEPT_GENERATORS)  # of generators and of facial components

    def __setattr__(self, name: str, value: object):
        if isinstance(network := getattr(value, "_orig_mod", None), FsthPreTrainedModel):
            value = network.compile_by(value.dynamo_ctx)  # instead of what torch.compile wraps around it
        super().__setattr__(name, value)

    # Loading and saving

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | Path | None = None,
        *,
        dtype: torch.dtype | dict[str, torch.dtype] | None = None,
        torch_dtype: torch.dtype | dict[str, torch.dtype] | None = None,
        device_map: str | None = None,
        max_memory: dict | None = None,
        low_cpu_mem_usage: bool = True,
        use_safetensors: bool | None = None,
        variant: str | None = None,
        revision: str | None = None,
        token: str | bool | None = None,
        cache_dir: str | Path | None = None,
        local_files_only: bool = False,
        force_download: bool = False,
        trust_remote_code: bool = False,
        engine: Engine = "auto",
        **components,
    ) -> Self:
        """
        Load a pipeline, as `DiffusionPipeline.from_pretrained` does: onto the CPU and in float32 unless something else
        is said. Code that a folder may carry is not executed.

        ```python
        pipe = FsthPipeline.from_pretrained(dtype=torch.bfloat16, discriminator=None).to("cuda")
        ```

        Args:
            pretrained_model_name_or_path (`str` or `Path`, *optional*):
                A folder of [`~FsthPipeline.save_pretrained`] or the id of a hub repository; by default the small model
                that ships with the package, which needs no network.
            dtype (`torch.dtype` or `dict`, *optional*, defaults to `torch.float32`):
                One for all networks, or by name of the component, `"default"` being the others'.
            torch_dtype: The older name of `dtype`.
            device_map (`str`, *optional*): `"balanced"`, or the one device on which all components are loaded.
            max_memory (`dict`, *optional*): How much a device may take, for `device_map="balanced"`.
            low_cpu_mem_usage (`bool`, *optional*, defaults to `True`):
                Networks take memory once while they are loaded; `False` is refused with a `device_map`.
            use_safetensors (`bool`, *optional*): `False` is refused: pickled weights are never read.
            variant (`str`, *optional*): Which weights, such as `"fp16"` for those in `model.fp16.safetensors`.
            revision, token, cache_dir, local_files_only, force_download: as in `huggingface_hub.snapshot_download`.
            trust_remote_code (`bool`, *optional*): Makes no difference: a folder's own code is not needed here.
            engine (`str`, *optional*, defaults to `"auto"`): see [`~FsthPipeline.engine`].
            components: Those to take instead of the folder's, by name; `None` for an optional one to do without.

        Raises:
            FsthError: There is no such folder or repository, or it holds no pipeline that can be loaded so.
            TypeError: There is no such argument, and no component of that name.
        """
        check_engine(engine)
        if torch_dtype is not None and dtype is not None:
            raise FsthError("Give `dtype` or `torch_dtype`, which is its older name, but not both.")
        dtype = torch_dtype if dtype is None else dtype
        check_components(cls.__name__, cls.component_classes(), cls._optional_components, components, dtype)
        if use_safetensors is False:
            raise FsthError("`use_safetensors=False` is refused: pickled weights can run code and are never read.")
        if device_map is not None and not low_cpu_mem_usage:
            raise FsthError("`device_map` needs `low_cpu_mem_usage=True`: leave one of the two out.")
        name = BUNDLED_MODEL if pretrained_model_name_or_path is None else pretrained_model_name_or_path
        options = {"revision": revision, "token": token, "cache_dir": cache_dir, "force_download": force_download}
        # a repository as a folder: diffusers cannot import the classes of another package from the hub itself
        folder = fetch(name, local_files_only=local_files_only, **options)
        if "FsthPipeline" not in (names := class_names(folder)) and cls.__name__ not in names:
            raise FsthError(f"{name} holds no pipeline of fsth_hub: its {INDEX} is missing or names another.")
        try:
            pipe = super().from_pretrained(
                str(folder),
                dtype=torch.float32 if dtype is None else dtype,
                device_map=device_map,
                max_memory=max_memory,
                low_cpu_mem_usage=low_cpu_mem_usage,
                use_safetensors=True,
                variant=variant,
                **components,
            )
        except Exception as error:  # a damaged file makes the libraries raise nearly anything
            raise loading_error(name, variant, error) from error
        networks = {"embedder": pipe.embedder, "generator": pipe.generator, "discriminator": pipe.discriminator}
        check_fit(name, networks, pipe.image_processor.size["height"])
        for part, network in pipe.components.items():
            if part not in components and isinstance(network, PreTrainedModel) and not is_hooked(network):
                network.to(memory_format=torch.channels_last)  # as inference takes it
        if "generator" not in components:
            pipe.generator.source = source_of(name, folder)
        pipe.engine = engine
        return pipe

    @classmethod
    def load_config(cls, *args, **kwargs):
        """As in diffusers, but what classes the components have is this class's to say, and not the folder's: so no
        code that lies there is looked for."""
        loaded = super().load_config(*args, **kwargs)
        index = loaded[0] if isinstance(loaded, tuple) else loaded
        index["_class_name"] = cls.__name__
        for name, component in cls.component_classes().items():
            if index.get(name, (None,))[0] is not None:
                index[name] = [component.__module__, component.__name__]
        return loaded

    @classmethod
    def component_classes(cls) -> dict[str, type]:
        """The classes of what a pipeline is made of, optional components among them, by name."""
        names, _ = cls._get_signature_keys(cls)
        types = cls._get_signature_types()
        return {name: next(kind for kind in types[name] if kind is not type(None)) for name in names}

    @property
    def model_source(self) -> ModelSource:
        """Where the model comes from, which is what its generator says: identities are made of that."""
        if self.generator.source is not None:
            return self.generator.source
        name, folder = self.config.get("_name_or_path"), Path(self.generator.name_or_path).parent
        # by plain `DiffusionPipeline`, unless this generator was given to it
        if name is not None and (Path(name) == folder or f"models--{str(name).replace('/', '--')}" in folder.parts):
            return source_of(name, folder)
        return ModelSource("unnamed")

    @property
    def model_name(self) -> str:
        """Id of the hub repository or name of the folder that the model was loaded from, "bundled", or "unnamed"."""
        return self.model_source.name

    @model_name.setter
    def model_name(self, name: str):
        self.generator.source = ModelSource(name)

    @property
    def model_revision(self) -> str | None:
        """The commit, of a model from the hub."""
        return self.model_source.revision

    def save_pretrained(
        self,
        save_directory: str | Path,
        safe_serialization: bool = True,
        variant: str | None = None,
        max_shard_size: int | str | None = None,
        push_to_hub: bool = False,
        *,
        repo_id: str | None = None,
        **publishing,
    ) -> None:
        """
        Save the networks in the precision that they are in, as safetensors, and the image processor.

        Args:
            save_directory (`str` or `Path`): Other variants that lie there stay.
            safe_serialization (`bool`, *optional*, defaults to `True`): `False` is refused: pickles are not written.
            variant (`str`, *optional*): Part of the weights' file names, such as `"fp16"`; the others' are without.
            max_shard_size (`int` or `str`, *optional*): Of one file of weights, such as `"15MB"`.
            push_to_hub (`bool`, *optional*, defaults to `False`): Publish the pipeline, too.
            repo_id (`str`, *optional*): Where to, by default a repository of the directory's name.
            publishing: What else [`~FsthPipeline.push_to_hub`] takes.
        """
        if not safe_serialization:
            raise FsthError("`safe_serialization=False` is refused: weights are saved as safetensors alone.")
        if push_to_hub:
            repo_id = repo_id or Path(save_directory).absolute().name
            inspect.signature(self.push_to_hub).bind(repo_id, variant=variant, **publishing)  # before anything is done
        elif repo_id is not None or publishing:
            names = ", ".join([*publishing, *["repo_id"] * (repo_id is not None)])
            raise TypeError(f"save_pretrained takes {names} with push_to_hub=True alone.")
        for name in self._optional_components:
            if isinstance(getattr(self, name), PreTrainedModel):  # diffusers forgets one that was added later
                self.register_modules(**{name: getattr(self, name)})
        with merged_folder(save_directory) as folder:
            super().save_pretrained(folder, variant=variant, max_shard_size=max_shard_size)
            forget(Path(folder, INDEX), "_name_or_path")  # where it was loaded from, on this machine
            if variant is not None:
                for path in folder.glob("*/config.json"):
                    forget(path, "dtype")  # that of the variant saved last: loading any other would follow it
        if push_to_hub:
            self.push_to_hub(repo_id, variant=variant, **publishing)

    def push_to_hub(
        self,
        repo_id: str,
        *,
        variant: str | None = None,
        private: bool = True,
        revision: str | None = None,
        token: str | bool | None = None,
        commit_message: str = "Upload pipeline",
        include_code: bool = False,
    ) -> str:
        """
        Publish the pipeline on the hub, with a card, for `from_pretrained(repo_id)`.

        Args:
            repo_id, private, token: as in [`~hub.create_repository`].
            revision, commit_message: as in [`~hub.publish`].
            variant (`str`, *optional*): as in [`~FsthPipeline.save_pretrained`].
            include_code (`bool`, *optional*, defaults to `False`):
                Add what those need who load it without this package, with `trust_remote_code=True`.

        Returns:
            `str`: The address of the commit.

        Raises:
            FsthError: The repository cannot be written to, or the upload broke off; nothing there has changed then.
        """
        from .publishing import publish_pipeline

        options = {"variant": variant, "private": private, "revision": revision, "token": token}
        return publish_pipeline(self, repo_id, commit_message=commit_message, include_code=include_code, **options)

    # Getting to know a person

    def embed(
        self,
        portraits: Portrait | Sequence[Portrait],
        face_index: int | Sequence[int] = 0,
        crop: bool = True,
        shots: int = DEFAULT_SHOTS,
    ) -> FsthPerson:
        """
        Learn a person from one or more portraits (section 3.4 without fine-tuning).

        Args:
            portraits: A picture or several of one person, each all that [`load_image`] takes, or a clip of them, of
                which [`~FsthPipeline.pick_portraits`] takes frames.
            face_index (`int` or `list[int]`, *optional*, defaults to 0):
                Which face of a picture, counted from the largest; one for all pictures, or one for each.
            crop (`bool`, *optional*, defaults to `True`): `False` if the pictures are square head crops already.
            shots (`int`, *optional*, defaults to 8): How many frames of a clip to take, 1 to 64.

        Raises:
            FsthError: A picture cannot be read or has too few faces; [`NoFaceError`] where it has none.
        """
        return self.embed_crops(*self.read_portraits(portraits, face_index, crop, shots))

    def pick_portraits(
        self,
        clip: ClipFile | Frames | Clip,
        shots: int = DEFAULT_SHOTS,
        face_index: int = 0,
        crop: bool = True,
    ) -> list[PickedPortrait]:
        """
        Pick frames of a clip that serve well as its person's portraits: sharp, with open eyes, evenly over the clip.

        ```python
        for portrait in pipe.pick_portraits("person.mp4"):
            portrait.image.save(f"{portrait.time:.2f} s, {portrait.why}.png")
        ```

        Args:
            clip: A video (path, bytes, file object), its frames or a clip, as [`open_clip`] takes them; it is read
                twice, in constant memory. Of one that changes shots the longest shot is taken.
            shots (`int`, *optional*, defaults to 8): How many, 1 to 64; fewer come where fewer frames are clear.
            face_index (`int`, *optional*, defaults to 0): Whose, counted from the largest face where the clip begins.
            crop (`bool`, *optional*, defaults to `True`): `False` if the clip is a square head crop already.

        Returns:
            `list[PickedPortrait]`: First the one that motion is counted from. They go wherever portraits do.

        Raises:
            FsthError: The clip cannot be read; [`NoFaceError`] where no frame has a face.
        """
        check_number("shots", shots, 1, MAX_SHOTS, whole=True)
        check_number("face_index", face_index, 0, whole=True)
        clip = open_clip(clip, allow_still=True)
        with self.progress_bar(total=clip.frame_count or 0) as progress:
            return pick_portraits(clip, self.detector, shots, face_index, crop, progress.update)

    def read_portraits(
        self,
        portraits: Portrait | Sequence[Portrait],
        face_index: int | Sequence[int] = 0,
        crop: bool = True,
        shots: int = DEFAULT_SHOTS,
    ) -> tuple[list[np.ndarray], list[np.ndarray], list[CropBox]]:
        """
        Cut the heads out of portraits: the crops, their landmarks, and the squares, as `embed_crops` takes them. Crops
        are as large as the heads, but no smaller than what the networks see, and 1024 pixels at most.
        """
        pictures, face_index = self._pick_from_clips(list_portraits(portraits), face_index, crop, shots)
        return cut_heads(pictures, self.detector, face_index, crop, self.size)

    def _pick_from_clips(self, portraits: list, face_index: int | Sequence[int], crop: bool, shots: int) -> tuple:
        return pick_from_clips(
            portraits, face_index, lambda clip, index: self.pick_portraits(clip, shots, index, crop)
        )

    @torch.no_grad()
    def embed_crops(
        self, crops: Sequence[np.ndarray], landmarks: Sequence[np.ndarray], boxes: list[CropBox] | None = None
    ) -> FsthPerson:
        """
        The same for head crops whose landmarks are known.

        Args:
            crops: Each S x S x 3 uint8 RGB of any size S.
            landmarks: For each crop 78 x 2, pixels of the crop.
            boxes (`list[CropBox]`, *optional*): Where the crops come from.
        """
        images, drawings, points, mattes = self.prepare_portraits(crops, landmarks)
        embedder, generator = for_inference(self.embedder), self._folded_generator()
        place = {"device": self._device_of(embedder), "dtype": embedder.dtype}
        seen = embedder(images.to(**place), drawings.to(**place))
        warn_of_strangers(seen.frame_embeddings[0].float().cpu().numpy(), np.stack(landmarks))
        return FsthPerson(
            adain_parameters=generator.project(seen.embedding.to(self._device_of(generator), generator.dtype)),
            sources=self.encode_sources(generator, images, drawings, points, mattes),
            landmarks=points[0, 0].cpu().numpy(),
            boxes=boxes or [],
            crops=crops,
        )

    def prepare_portraits(self, crops: Sequence[np.ndarray], landmarks: Sequence[np.ndarray]) -> list[torch.Tensor]:
        """Head crops (pictures), their drawings, landmarks and mattes as networks take them, 1 x K x ..., float32."""
        mattes = cut_mattes(crops, landmarks, self.size)
        inputs = self.image_processor.preprocess(list(crops), list(landmarks), return_landmarks=True)
        device = self._execution_device
        return [
            inputs["images"][0].to(device, memory_format=torch.channels_last)[None],  # 1 x K x 3 x 256 x 256
            inputs["landmark_images"][0].to(device, memory_format=torch.channels_last)[None],
            inputs["landmarks"].to(device),  # 1 x K x 78 x 2
            mattes.to(device)[None],  # 1 x K x 1 x 256 x 256
        ]

    @torch.no_grad()
    def encode_sources(
        self, generator: FsthGenerator, images, landmark_images, landmarks, mattes
    ) -> FsthSources | None:
        """What a generator, this pipeline's or a tuned one, keeps of portraits; `None` without source skips."""
        if not generator.config.source_skips:
            return None
        generator = for_inference(generator)
        device, dtype = self._device_of(generator), generator.dtype
        images, landmark_images, mattes = (part.to(device, dtype) for part in (images, landmark_images, mattes))
        return generator.encode_sources(images, landmark_images, landmarks.to(device), mattes)

    def generator_for(self, person: FsthPerson | None = None) -> FsthGenerator:
        """
        The generator of a person, for [`~FsthPipeline.generate_frame`]: on the pipeline's device and in its precision,
        folded for inference, with a LoRA merged, and compiled if the pipeline's is (`pipe.generator.compile()`). It is
        kept, and made anew if weights, device or precision change. With the engine OpenVINO that computes what is slow
        of it, in float32 but for what it does not hurt.

        Args:
            person ([`FsthPerson`], *optional*): By default whoever was not fine-tuned.

        Returns:
            [`FsthGenerator`]: Not to be changed; the pipeline's own where that is offloaded.
        """
        return self._computed(self._folded_generator(person), compiled_generator)

    def _folded_generator(self, person: FsthPerson | None = None) -> FsthGenerator:
        """The same, whatever the engine."""
        own = person is not None and bool(person.own_weights)
        if not own and is_hooked(self.generator):
            return for_inference(self.generator)
        place = {"device": self._device_of(self.generator), "dtype": self.generator.dtype}

        def make():
            generator = person.tuned_generator(self.generator) if own else self.generator
            if (generator.device, generator.dtype) != tuple(place.values()):
                generator = copy.deepcopy(generator).to(**place)
            return fold(generator).compile_by(compiler)

        weights, compiler = person.own_weights if own else (self.generator,), self.generator.compiler
        return self._generators.get(owner_of(weights), (*place.values(), compiler, weights_state(*weights)), make)

    def _device_of(self, network: FsthPreTrainedModel) -> torch.device:
        """Where a network computes, which is not where it lies if it is offloaded."""
        return self._execution_device if is_hooked(network) else network.device

    def enable_group_offload(self, *args, **kwargs) -> None:
        """Refused (`FsthError`): a generator ready for inference is a copy, which such hooks do not follow."""
        raise FsthError(
            "Group offload does not work with this pipeline: call enable_model_cpu_offload() or "
            "enable_sequential_cpu_offload() instead."
        )

    @property
    def engine(self) -> Engine:
        """
        What computes frames: `"torch"`, or on processors `"openvino"`, which has to be installed (the extra `fast`)
        and takes the precision that the processor is quickest in, whatever the pipeline's is; frames differ by one
        grey level at most. `"auto"` takes OpenVINO where it can and is quicker.
        """
        return self._engine

    @engine.setter
    def engine(self, engine: Engine):
        check_engine(engine)
        self._engine = engine

    def _computed(self, network: FsthPreTrainedModel, make: Callable) -> FsthPreTrainedModel:
        """A network as the engine computes it, OpenVINO by the copy that is made; that is kept."""
        if pick_engine(self.engine, network) == "torch":
            return network
        fall_back = self.engine == "auto"
        state = fall_back, weights_state(network)
        return self._compiled.get(network, state, lambda: make(network, fall_back))

    # Fine-tuning

    def load_identity(
        self,
        name: str | Path,
        *,
        revision: str | None = None,
        token: str | bool | None = None,
        cache_dir: str | Path | None = None,
        local_files_only: bool = False,
    ) -> FsthTunedPerson:
        """[`FsthIdentity.from_pretrained`], whose arguments these are, and [`~FsthPipeline.bind`] in one."""
        options = {"revision": revision, "token": token, "cache_dir": cache_dir}
        return self.bind(FsthIdentity.from_pretrained(name, local_files_only=local_files_only, **options))

    def bind(self, identity: FsthIdentity) -> FsthTunedPerson:
        """
        Make an identity ready to be driven; several can share this pipeline, whose networks stay as they are.

        Raises:
            FsthError: It was fine-tuned from another model, or its tensors do not fit the model's.
        """
        return bind(self, identity)

    def fine_tune(
        self,
        portraits: Portrait | Sequence[Portrait],
        *,
        method: str = "full",
        steps: int | None = None,
        learning_rate: float | None = None,
        content: nn.Module | None = None,
        callback: Callable[[int, int, np.ndarray | None, dict[str, float]], None] | None = None,
        seed: int = 0,
        face_index: int = 0,
        crop: bool = True,
        shots: int = DEFAULT_SHOTS,
    ) -> FsthTunedPerson:
        """
        Fine-tune the model to a person (section 3.4); the pipeline's own networks stay as they are.

        ```python
        identity = pipe.fine_tune(["one.jpg", "two.jpg"])
        identity.save_pretrained("ada")
        pipe(pipe.load_identity("ada"), "driver.mp4").save("result.mp4")
        ```

        Args:
            portraits, face_index, crop, shots: as in [`~FsthPipeline.embed`]; 1 to 64 portraits.
            method (`str`, *optional*, defaults to `"full"`):
                `"full"` tunes the generator itself, as the paper does, and keeps all its weights; `"lora"` tunes and
                keeps low-rank updates of its convolutions, about 1 MB with the bundled model. Either tunes the facial
                components as well, leaves the source skips as they are, and keeps crops of the head besides, 0.8 MB
                for each portrait at 512 pixels.
            steps (`int`, *optional*): At most so many; by default 50 for one portrait to 230 for thirty.
            learning_rate (`float`, *optional*): Adam's; by default the paper's 5e-5, or 3e-4 for LoRA.
            content (`nn.Module`, *optional*):
                A [`ContentLoss`]; by default over the VGG16 of this package, of [`~finetuning.loop.load_content`].
            callback (`Callable`, *optional*):
                Called after each step with its number, the number of steps, every tenth time a preview
                (256 x 256 x 3 uint8, otherwise `None`), and the loss terms. What it raises ends fine-tuning and
                reaches the caller; nothing is left then.
            seed (`int`, *optional*, defaults to 0): Of the order and deformations of the portraits.

        Raises:
            FsthError: A portrait or option cannot be used, the loss is not finite, or memory is too small.
        """
        check_discriminator(self)
        crops, landmarks, boxes = self.read_portraits(portraits, face_index, crop, shots)
        options = {"method": method, "steps": steps, "learning_rate": learning_rate, "content": content}
        options |= {"callback": callback, "seed": seed}
        return self.fine_tune_crops(crops, landmarks, boxes=boxes, **options)

    def fine_tune_crops(
        self,
        crops: Sequence[np.ndarray],
        landmarks: Sequence[np.ndarray],
        *,
        boxes: list[CropBox] | None = None,
        method: str = "full",
        steps: int | None = None,
        learning_rate: float | None = None,
        content: nn.Module | None = None,
        callback: Callable[[int, int, np.ndarray | None, dict[str, float]], None] | None = None,
        seed: int = 0,
    ) -> FsthTunedPerson:
        """The same for head crops whose landmarks are known, as in [`~FsthPipeline.embed_crops`]."""
        check_discriminator(self)
        options = {"method": method, "steps": steps, "learning_rate": learning_rate, "content": content}
        return tune(self, crops, landmarks, boxes, callback=callback, seed=seed, **options)

    # Driving

    def read_driving(
        self,
        driving: Driving,
        face_index: int = 0,
        crop: bool = True,
        num_frames: int | None = None,
        fps: float | None = None,
    ) -> DrivingMotion:
        """
        Follow the face of a driving clip, holding one frame at a time.

        Args:
            driving: A video (path, bytes, file object), frames (array N x H x W x 3, tensor N x C x H x W, a list or
                any other iterable of pictures) or a clip, as [`open_clip`] takes them. What has no pictures is read
                by [`~DrivingMotion.load`].
            face_index (`int`, *optional*, defaults to 0): Which face, counted from the largest in the first frame.
            crop (`bool`, *optional*, defaults to `True`): `False` if the clip is a square head crop already.
            num_frames (`int`, *optional*): Read no more than so many frames.
            fps (`float`, *optional*):
                Frames per second to take of a file or clip; by default its own, or a whole part of it that is not
                above 32. For frames, the rate at which they were taken, by default 25.

        Raises:
            FsthError: The clip cannot be read; [`NoFaceError`] where no frame has a face.
        """
        check_number("face_index", face_index, 0, whole=True)
        if is_motion(driving):
            return DrivingMotion.load(driving).first(num_frames)
        clip = open_clip(driving, fps=fps, max_frames=num_frames)
        with self.progress_bar(total=clip.frame_count or 0) as progress:
            return read_motion(clip, self.detector, face_index, crop, self.size, progress.update)

    def drive(
        self,
        person: FsthPerson,
        driving: DrivingMotion,
        motion: MotionMode = "relative",
        reference_frame: int | None = None,
        motion_strength: float = 1.0,
        smoothing: float = DEFAULT_SMOOTHING,
        size: int | None = None,
        regions: Iterable[str] | str | None = None,
        batch_size: int | None = None,
    ) -> Iterator[np.ndarray]:
        """
        Generate the person frame by frame as the driver moves: each size x size x 3 uint8 RGB, without a watermark.

        Args:
            person ([`FsthPerson`]): of [`~FsthPipeline.embed`] or [`~FsthPipeline.fine_tune`].
            driving ([`DrivingMotion`]): of [`~FsthPipeline.read_driving`], or one of its own makers.
            motion (`str`, *optional*, defaults to `"relative"`):
                `"relative"` moves the portrait by the change of the driver from a reference frame; `"absolute"` takes
                over the driver's landmarks, and with them the shape of the driver's face (the paper's way).
            reference_frame (`int`, *optional*):
                The driver's frame that counts as the portrait's own pose; by default the motion's own reference, or
                the frame most like the portrait.
            motion_strength (`float`, *optional*, defaults to 1):
                How much of the driver's change to take over, 0 (the portrait stays still) to 2; relative motion only.
            smoothing (`float`, *optional*, defaults to 0.03):
                Seconds, 0 to 1, over which the detector's jitter is averaged out while the driver's head rests; 0
                takes the landmarks as they were found. What moves is smoothed less, and nothing lags. Only what was
                found in a clip is smoothed.
            size (`int`, *optional*): as in [`~FsthPipeline.output_size`].
            regions (`list[str]`, *optional*):
                What moves of "head", "brows", "eyes", "gaze" and "mouth"; by default all. Relative motion only.
            batch_size (`int`, *optional*):
                How many frames the networks get in one call, and memory holds at once; the frames are the same. By
                default 1 on a processor, where each comes as soon as it is done, and 8 elsewhere; with OpenVINO,
                which converts the networks for each number of frames, always 1.
        """
        check_batch_size(batch_size)
        size = self.output_size(person, size)
        driving = driving.resized(self.size)
        options = (motion, reference_frame, motion_strength, smoothing, regions)
        landmarks = adapt_motion(person.landmarks, driving, *options)
        generator = self.generator_for(person)
        try:
            engine = pick_engine(self.engine, self.generator)
            count = parallel.pick_batch_size(batch_size, self._device_of(generator), engine)
            batches, workers = parallel.in_batches(landmarks, count), parallel.num_workers(generator)

            def generate(batch):
                return self.generate_frames(generator, person, np.stack(batch), size)

            with closing(parallel.generate_ahead(generate, batches, workers)) as generated:
                yield from chain.from_iterable(generated)
        finally:
            self.maybe_free_model_hooks()

    def express(
        self,
        portraits: Portrait | Sequence[Portrait] | FsthPerson,
        expression: Expression,
        *,
        crop: bool = True,
        face_index: int | Sequence[int] = 0,
        size: int | None = None,
        paste_back: bool = False,
        output_path: str | os.PathLike | None = None,
        watermark: bool = True,
        credentials: bool = True,
    ) -> Image.Image:
        """
        Show a person with another expression.

        ```python
        pipe.express("portrait.jpg", Expression(smile=0.6, yaw=8))
        ```

        Args:
            portraits, crop, face_index, size, paste_back, watermark: as in [`~FsthPipeline.__call__`].
            expression ([`Expression`]): How the face is to differ from the first portrait's.
            output_path (`str` or `Path`, *optional*): Write the picture, too, as .png.
            credentials (`bool`, *optional*, defaults to `True`): Sign the written picture.

        Returns:
            `PIL.Image.Image`: RGB.

        Raises:
            FsthError: An input cannot be used.
        """
        from .expressing import express

        options = {"crop": crop, "face_index": face_index, "size": size, "paste_back": paste_back}
        options |= {"output_path": output_path, "watermark": watermark, "credentials": credentials}
        return express(self, portraits, expression, **options)

    def output_size(self, person: FsthPerson, size: int | None = None) -> int:
        """
        The side of a person's frames in pixels: what is asked for, or what the first portrait has, if that is less.

        Args:
            person ([`FsthPerson`]): of [`~FsthPipeline.embed`].
            size (`int`, *optional*):
                From the size that the networks see (256) to 1024, an even number; by default 512. Flow and residual
                are generated at 256, and the portrait's own pixels put where they lead.

        Raises:
            FsthError: Another size, or a model without source skips, which has no pixels of the portrait to take.
        """
        check_size(size, self.generator.config)
        if not self.generator.config.source_skips:
            return self.size
        return min(size or max(DEFAULT_SIZE, self.size), person.max_size)

    def generate_frame(
        self, generator: FsthGenerator, person: FsthPerson, points: np.ndarray, size: int | None = None
    ) -> np.ndarray:
        """[`~FsthPipeline.generate_frames`] of one: `points` are 78 x 2, the frame is size x size x 3 uint8 RGB."""
        return self.generate_frames(generator, person, points[None], size)[0]

    @torch.no_grad()
    def generate_frames(
        self, generator: FsthGenerator, person: FsthPerson, points: np.ndarray, size: int | None = None
    ) -> list[np.ndarray]:
        """
        Generate frames of a person in one call of the networks, for callers with landmarks of their own.

        Args:
            generator ([`FsthGenerator`]): of [`~FsthPipeline.generator_for`].
            person ([`FsthPerson`]): of [`~FsthPipeline.embed`].
            points (`np.ndarray` of shape `(batch, 78, 2)`): pixels of frames of 256 x 256, NaN where absent.
            size (`int`, *optional*): as in [`~FsthPipeline.output_size`].

        Returns:
            `list[np.ndarray]`: The frames in order, each size x size x 3 uint8 RGB.
        """
        size = self.output_size(person, size)
        device, dtype = self._device_of(generator), generator.dtype
        adain_parameters, sources = person.inputs(device, dtype)
        drawings = self.image_processor.rasterize(points).to(device, dtype, memory_format=torch.channels_last)
        adain_parameters = adain_parameters.expand(len(points), -1)
        # points stay in float32: half precision has no sub-pixels
        landmarks = torch.from_numpy(points).to(device)
        output = generator(drawings, adain_parameters, landmarks, sources, return_images=False)
        if output.composition is None:
            return self.image_processor.postprocess(output.images)
        retouch = None
        if self.facial_components is not None:
            landmarks = torch.from_numpy(points * np.float32(size / self.size))
            components = self._components_for(person)
            compute = self._computed(components, compiled_components)
            device = self._device_of(self.facial_components)
            retouch = partial(
                person.retouch, landmarks=landmarks, components=components, device=device, compute=compute
            )
        return person.compositor(size)(output.composition, retouch)

    def _components_for(self, person: FsthPerson) -> FsthFacialComponents:
        """The facial components of a person, as [`~FsthPipeline.generator_for`] has generators."""
        if not person.own_component_weights:
            return self.facial_components
        place = {"device": self._device_of(self.facial_components), "dtype": self.facial_components.dtype}

        def make():
            components = copy.deepcopy(person.tuned_components(self.facial_components)).eval().requires_grad_(False)
            return components.to(**place, memory_format=torch.channels_last).compile_by(compiler)

        weights, compiler = person.own_component_weights, self.facial_components.compiler
        return self._components.get(owner_of(weights), (*place.values(), compiler, weights_state(*weights)), make)

    def __call__(
        self,
        portraits: Portrait | Sequence[Portrait] | FsthPerson,
        driving: Driving | DrivingMotion,
        *,
        motion: MotionMode = "relative",
        crop: bool = True,
        face_index: int | Sequence[int] = 0,
        driving_face_index: int = 0,
        shots: int = DEFAULT_SHOTS,
        num_frames: int | None = None,
        fps: float | None = None,
        reference_frame: int | None = None,
        motion_strength: float = 1.0,
        smoothing: float = DEFAULT_SMOOTHING,
        size: int | None = None,
        regions: Iterable[str] | str | None = None,
        batch_size: int | None = None,
        sound: ClipFile | None = None,
        paste_back: bool = False,
        output_path: str | os.PathLike | None = None,
        output_type: Literal["pil", "np", "pt"] = "pil",
        watermark: bool = True,
        credentials: bool = True,
        callback_on_frame_end: Callable[["FsthPipeline", int, int, np.ndarray], None] | None = None,
        return_dict: bool = True,
    ) -> FsthPipelineOutput | tuple:
        """
        Animate a person.

        Args:
            portraits: Pictures or a clip of one person, or an [`FsthPerson`], such as an [`FsthIdentity`].
            driving: A clip or its frames, a [`DrivingMotion`], or what [`~DrivingMotion.load`] takes, as "motion:nod".
            motion, reference_frame, motion_strength, smoothing, regions, batch_size: as in [`~FsthPipeline.drive`].
            sound: A clip or recording (wav, mp3, flac, ogg, m4a) whose sound to take instead of the driver's.
            size (`int`, *optional*):
                Side of the frames in pixels, even, 256 to 1024, but never more than the first portrait has; by default
                512, or with `paste_back` as many as the head has in the photograph.
            paste_back (`bool`, *optional*, defaults to `False`):
                Put the moving head back into the first portrait, reduced to fit 1920 x 1080 or 1080 x 1920 pixels.
            crop, face_index, shots, driving_face_index, num_frames, fps:
                as in [`~FsthPipeline.embed`] and [`~FsthPipeline.read_driving`]; of a [`DrivingMotion`] the first
                `num_frames` frames are taken, at its own rate.
            output_path (`str` or `Path`, *optional*):
                Stream the clip into this .mp4 or .gif instead of keeping its frames, whatever its length.
            output_type (`str`, *optional*, defaults to `"pil"`):
                The kind of frames that are returned: `"pil"`, `"np"` or `"pt"`; see [`FsthPipelineOutput`].
            watermark (`bool`, *optional*, defaults to `True`): Draw "AI-generated" into a corner of every frame.
            credentials (`bool`, *optional*, defaults to `True`):
                Sign the written clip with Content Credentials ([`sign`]), where c2pa-python is installed.
            callback_on_frame_end (`Callable`, *optional*):
                Called at the end of each frame with this pipeline, the frame's index, the number of frames, and the
                frame itself (H x W x 3 uint8 RGB, as it will be returned or written). What it raises ends the call
                and is passed on; no file is left behind.
            return_dict (`bool`, *optional*, defaults to `True`):
                An [`FsthPipelineOutput`], or else a tuple of all its fields in order.

        Raises:
            FsthError: An input cannot be used; the message says which, and what to do.
        """
        # 1. Check inputs: what can be known to fail fails before any work
        driving = DrivingMotion.load(driving) if is_motion(driving) else driving
        check_inputs(
            self.generator.config,
            portraits,
            driving,
            motion=motion,
            face_index=face_index,
            driving_face_index=driving_face_index,
            shots=shots,
            num_frames=num_frames,
            fps=fps,
            reference_frame=reference_frame,
            motion_strength=motion_strength,
            smoothing=smoothing,
            regions=regions,
            size=size,
            batch_size=batch_size,
            paste_back=paste_back,
            output_path=output_path,
            output_type=output_type,
            callback_on_frame_end=callback_on_frame_end,
            crop=crop,
            watermark=watermark,
            credentials=credentials,
            return_dict=return_dict,
        )
        voice = None if sound is None else read_sound(sound)
        signed = credentials and check_credentials()
        pictures = None if isinstance(portraits, FsthPerson) else list_portraits(portraits)
        clip = None
        if not isinstance(driving, DrivingMotion):
            clip = open_clip(driving, fps=fps, max_frames=num_frames)
        seconds, started = {}, time.perf_counter()

        def stage(name: str):
            nonlocal started
            seconds[name] = round(time.perf_counter() - started, 3)
            started = time.perf_counter()

        # 2. Embed the person
        person, canvas = portraits, None
        if pictures is not None:
            pictures, face_index = self._pick_from_clips(pictures, face_index, crop, shots)
            person, canvas, size = embed_pictures(self, pictures, face_index, crop, paste_back, size)
        size = self.output_size(person, size)
        stage("embed")

        # 3. Follow the driver's face
        if clip is None:
            driving_motion = driving.first(num_frames).resized(self.size)
        else:
            driving_motion = self.read_driving(clip, driving_face_index, crop)
        if voice is not None:
            driving_motion = replace(driving_motion, audio_from=voice)
        total = len(driving_motion.landmarks)
        stage("landmarks")

        # 4. Generate frame by frame
        options = (motion, reference_frame, motion_strength, smoothing, size, regions, batch_size)
        frames = self.drive(person, driving_motion, *options)
        frames = frames if canvas is None else map(canvas, frames)
        driver = driving_motion.title, driving_motion.file
        sources = None if pictures is None else files_of(pictures)
        origin = Origin.of(self.model_name, person, sources, driver) if signed else None
        fps, audio_from = driving_motion.fps, driving_motion.audio_from
        output = {"output_path": output_path, "output_type": output_type, "callback": callback_on_frame_end}
        frames = deliver(self, frames, total, fps, audio_from, origin, watermark=watermark, **output)
        stage("frames")

        # 5. Say how it came about
        report = FsthReport(
            num_frames=total,
            fps=fps,
            size=size,
            max_size=person.max_size,
            portrait_boxes=tuple(person.boxes),
            driving_box=driving_motion.box,
            frames_without_face=tuple(driving_motion.missing),
            shots=driving_motion.shots,
            sound=audio_from is not None,
            watermark=watermark,
            credentials=signed,
            engine=pick_engine(self.engine, self.generator),
            seconds=seconds,
        )
        output = FsthPipelineOutput(frames, fps, audio_from, report, origin, driving_motion)
        return output if return_dict else output.to_tuple()

    def animate_group(
        self,
        photograph: Picture,
        driving: Driving | DrivingMotion,
        faces: Faces = "all",
        driving_faces: Faces = "all",
        *,
        people: Sequence[FsthPerson | None] = (),
        motion: MotionMode = "relative",
        num_frames: int | None = None,
        fps: float | None = None,
        reference_frame: int | None = None,
        motion_strength: float = 1.0,
        smoothing: float = DEFAULT_SMOOTHING,
        size: int | None = None,
        regions: Iterable[str] | str | None = None,
        batch_size: int | None = None,
        sound: ClipFile | None = None,
        output_path: str | os.PathLike | None = None,
        output_type: Literal["pil", "np", "pt"] = "pil",
        watermark: bool = True,
        credentials: bool = True,
        callback_on_frame_end: Callable[["FsthPipeline", int, int, np.ndarray], None] | None = None,
        return_dict: bool = True,
    ) -> FsthPipelineOutput | tuple:
        """
        Animate several people of one photograph, and put them back into it.

        ```python
        pipe.animate_group("family.jpg", "driver.mp4").save("family.mp4")
        ```

        Args:
            photograph: All that [`load_image`] takes.
            driving: As in [`~FsthPipeline.__call__`]; a clip of several people is followed in one pass.
            faces (`"all"` or `list[int]`, *optional*, defaults to `"all"`):
                Whose of the photograph: numbers, counted from 0, the largest face; or all that are at least a third
                as large as the largest, from left to right.
            driving_faces (`"all"` or `list[int]`, *optional*, defaults to `"all"`):
                Who drives them, chosen alike in the first frame that shows a face. The first drives the first, the
                second the second; where they are fewer it begins again, so that one alone drives everybody.
            people (`list[FsthPerson]`, *optional*):
                Who is known better than by this photograph, in the order of the faces: embedded from other portraits,
                which then serve besides, or fine-tuned. `None`, or a shorter list, for those who are not.
            size (`int`, *optional*): Side of the frames of each head; by default what it has in the photograph.
            motion, regions, batch_size, sound, num_frames, fps, reference_frame, motion_strength, smoothing,
            output_path, output_type, watermark, credentials, callback_on_frame_end, return_dict:
                as in [`~FsthPipeline.__call__`].

        Returns:
            [`FsthPipelineOutput`]: Its report has a box of each face, the size of the largest, and the frames in which
            any driver's face was gone; `driving` is the first driver's motion.

        Raises:
            FsthError: An input cannot be used, or shows fewer faces than were asked for.
        """
        options = {"motion": motion, "regions": regions, "reference_frame": reference_frame, "size": size}
        options |= {"motion_strength": motion_strength, "smoothing": smoothing, "num_frames": num_frames, "fps": fps}
        options |= {"output_path": output_path, "output_type": output_type, "watermark": watermark}
        options |= {"credentials": credentials, "callback_on_frame_end": callback_on_frame_end}
        options |= {"batch_size": batch_size}
        inputs = {"face_index": 0, "driving_face_index": 0, "shots": 1, "paste_back": True, "return_dict": return_dict}
        check_inputs(self.generator.config, photograph, driving, **inputs, **options)
        faces, driving_faces = check_faces("faces", faces), check_faces("driving_faces", driving_faces)
        people = check_people(people)
        output = animate_group(self, photograph, driving, faces, driving_faces, people, sound=sound, **options)
        return output if return_dict else output.to_tuple()


# Where `DiffusionPipeline.from_pretrained` looks for the class that a folder names.
diffusers.FsthPipeline = FsthPipeline
