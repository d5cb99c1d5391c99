"""Cog's inference entry: a prompt and LoRAs in, pictures out.

Cog reads this file without running it, so the inputs are plain literals. They are
written by ``python -m tools.write_entries`` from lora_service/generation/request.py:
change them there.
"""

from cog import BaseRunner, Input, Path, Secret

from lora_service.services.inference_service import InferenceService
from lora_service.services.worker import Worker


class Predictor(BaseRunner):
    def setup(self, weights: Path | None = None) -> None:
        self.service = InferenceService(worker=Worker(), weights=weights)
        self.service.warm_up()

    def run(
        self,
        prompt: str = Input(
            default="a photo of <1>",
            max_length=5000,
            description="What to draw. <1>, <2>: what the first, second LoRA learned; trigger words work too.",
        ),
        lora_urls: str = Input(
            default="",
            description="Links to LoRAs, split by |. Share links of Google Drive, Hugging Face, Civitai … work.",
        ),
        lora: Path | None = Input(
            default=None, description="An uploaded LoRA, or a zip or tar with one; it comes before those of lora_urls."
        ),
        lora_scales: str = Input(
            default="0.8",
            max_length=4000,
            description="One scale for all, or one each, split by |. 0.8/0.5: UNet 0.8, text encoder 0.5.",
        ),
        image: Path | None = Input(default=None, description="A picture to start from."),
        mask: Path | None = Input(
            default=None, description="With image: white where it is drawn anew, black where it stays."
        ),
        prompt_strength: float = Input(
            default=0.8, ge=0, le=1, description="With image: how far the result may go from it. 1 ignores it."
        ),
        negative_prompt: str = Input(default="", max_length=5000, description="What not to draw."),
        num_outputs: int = Input(default=1, ge=1, le=8, description="How many pictures."),
        aspect_ratio: str = Input(
            default="auto",
            choices=["auto", "1:1", "5:4", "4:5", "4:3", "3:4", "3:2", "2:3", "16:9", "9:16", "21:9", "9:21"],
            description="Shape of the picture, of width, height or the base's size. auto: as image.",
        ),
        seed: int | None = Input(
            default=None,
            ge=0,
            le=4294967295,
            description="Empty: random, and reported. The same seed gives the same pictures.",
        ),
        guidance_scale: float | None = Input(
            default=None,
            ge=0,
            le=50,
            description="Empty: the base model's own (SD 1.5: 7.5). How strictly to follow the prompt.",
        ),
        width: int | None = Input(
            default=None, ge=16, le=8192, description="Empty: the base model's own (SD 1.5: 512). Width in pixels."
        ),
        height: int | None = Input(
            default=None, ge=16, le=8192, description="Empty: the base model's own (SD 1.5: 512). Height in pixels."
        ),
        num_inference_steps: int | None = Input(
            default=None,
            ge=1,
            le=500,
            description="Empty: the base model's own (SD 1.5: 30). Denoising steps of the scheduler.",
        ),
        clip_skip: int | None = Input(
            default=None,
            ge=1,
            le=32,
            description="Empty: as the LoRA was trained. Layer of the text encoder that is read, from the end.",
        ),
        scheduler: str = Input(
            default="DPMSolverMultistep",
            choices=[
                "DDIM",
                "K_EULER",
                "DPMSolverMultistep",
                "K_EULER_ANCESTRAL",
                "PNDM",
                "KLMS",
                "DPMSolverMultistepKarras",
                "DPMSolverMultistepSDE",
                "DPMSolverSinglestep",
                "DPMSolverSinglestepSDE",
                "KDPM2",
                "KDPM2Ancestral",
                "UniPC",
                "Heun",
                "LCM",
            ],
            description="The scheduler of the denoising steps.",
        ),
        schedule: str = Input(
            default="default",
            choices=["default", "karras", "exponential", "beta"],
            description="Spacing of the noise levels. karras often shows more detail at few steps.",
        ),
        guidance_rescale: float | None = Input(
            default=None,
            ge=0,
            le=1,
            description="Empty: 0, or 0.7 for bases with zero terminal SNR. Against garish colours at high guidance.",
        ),
        cache_interval: int = Input(
            default=1,
            ge=1,
            le=10,
            description="For drafts: 2 to 5 computes most of the UNet in every so many steps only. 1: off.",
        ),
        lora_mode: str = Input(
            default="together",
            choices=["together", "each"],
            description="Several LoRAs: all in every picture, or num_outputs pictures of each, in which it is <1>.",
        ),
        mask_feather: int | None = Input(
            default=None,
            ge=0,
            le=512,
            description="Empty: one latent (SD: 8). With mask: width in pixels of the soft edge, within the white.",
        ),
        keep_unmasked: bool = Input(
            default=True,
            description="With mask: its black parts are the image's own pixels. Off: the whole picture is decoded.",
        ),
        adapter_condition_image: Path | None = Input(
            default=None, description="A picture whose lines, depth or pose the result follows: see adapter_type."
        ),
        adapter_type: str = Input(
            default="sketch",
            choices=["sketch", "seg", "keypose", "depth", "canny", "lineart", "pose"],
            description="With adapter_condition_image: what of it is followed. Lines are traced from any picture.",
        ),
        adapter_scale: float = Input(
            default=1.0,
            ge=0,
            le=2,
            description="With adapter_condition_image: how strictly it is followed. 0 ignores it.",
        ),
        embedding_urls: str = Input(
            default="",
            description="Links to textual inversions, split by |; the file's name is the word for the prompt.",
        ),
        disable_safety_checker: bool = Input(
            default=False, description="Give out pictures unchecked, where this server allows it."
        ),
        output_format: str = Input(default="png", choices=["png", "jpeg", "webp"], description="Format of the files."),
        output_quality: int = Input(default=90, ge=1, le=100, description="Quality of jpeg and webp."),
        preview_every: int = Input(
            default=0,
            ge=0,
            le=500,
            description="Show a small preview of the first picture every so many steps. 0: none.",
        ),
        replicate_weights: str = Input(
            default="",
            description="Link to a training's result: a LoRA or trained_model.tar. It is <1>; lora_urls come after it.",
        ),
        api_token: Secret | None = Input(
            default=None, description="Token for a private link; it is sent to the link's own host only."
        ),
    ) -> list[Path]:
        inputs = {name: value for name, value in locals().items() if name not in ("self", "api_token")}
        token = api_token.get_secret_value() if api_token else None
        names = ("image", "mask", "adapter_condition_image", "lora", "replicate_weights")
        uploads = {name: inputs.pop(name) for name in names}
        paths = self.service.run(inputs, **uploads, token=token, record_metric=self.record_metric)
        return [Path(path) for path in paths]
