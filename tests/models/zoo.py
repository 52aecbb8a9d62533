"""Networks that others wrote, in small configurations: built from a configuration alone, so nothing is downloaded.

Most come from ``transformers``. Those of packages that are not installed are "not run"; those of ``timm`` 1.0.31,
``diffusers`` 0.42.1 and ``monai`` 1.6.1 were last run on 2026-12-01, with torch 2.13.0 on a CPU.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
from collections.abc import Callable
from dataclasses import dataclass

import torch
from builders import (
    Made,
    emu3_encoder,
    from_config,
    from_diffusers,
    from_monai,
    from_timm,
    image,
    nested,
    spectrogram,
    video,
    wave,
)

__all__ = ["NETWORKS", "Network", "missing"]

os.environ["HF_HUB_OFFLINE"] = "1"  # transformers reads it when it is imported


@dataclass(frozen=True, slots=True)
class Network:
    """A network.

    Attributes
    ----------
    build
        Returns the model and the arguments of a call.
    shows
        What it has that others have not.
    package
        Where it comes from.
    kept
        How many convolutions and pools are not replaced, for a reason that the report gives. None for any number.
    asks
        Whether gradients of the inputs are asked for: some models refuse.
    functions
        Whether it calls convolutions of ``torch.nn.functional``.
    """

    build: Callable[[], Made]
    shows: str
    package: str = "transformers"
    kept: int | None = 0
    asks: bool = True
    functions: bool = False


def missing(network: Network) -> str | None:
    """Return why a network cannot be built here, or None."""
    found = importlib.util.find_spec(network.package) is not None
    return None if found else f"{network.package} is not installed"


SMALL_VIT = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
SMALL_STAGES = {"hidden_sizes": [8, 16, 16, 32], "depths": [1, 1, 1, 1]}

NETWORKS: dict[str, Network] = {
    "resnet": Network(
        from_config("ResNetForImageClassification", "ResNetConfig", image(48), embedding_size=8, **SMALL_STAGES),
        "7 x 7 of stride 2, a max pool, bottlenecks, a global pool",
    ),
    "bit": Network(
        from_config(
            "BitForImageClassification",
            "BitConfig",
            image(48),
            embedding_size=8,
            num_groups=4,
            layer_type="preactivation",
            **SMALL_STAGES,
        ),
        "standardised weights and a pool that pads: subclasses with a forward of their own, which stay",
        kept=18,
    ),
    "regnet": Network(
        from_config(
            "RegNetForImageClassification", "RegNetConfig", image(48), embedding_size=8, groups_width=4, **SMALL_STAGES
        ),
        "grouped convolutions, squeeze and excitation",
    ),
    "convnext": Network(
        from_config(
            "ConvNextForImageClassification", "ConvNextConfig", image(64), layer_scale_init_value=0.5, **SMALL_STAGES
        ),
        "patches of 4 x 4, depthwise 7 x 7",
    ),
    "convnextv2": Network(
        from_config("ConvNextV2ForImageClassification", "ConvNextV2Config", image(64), **SMALL_STAGES),
        "the same with a response normalisation",
    ),
    "mobilenet_v2": Network(
        from_config(
            "MobileNetV2ForImageClassification", "MobileNetV2Config", image(64), depth_multiplier=0.25, output_stride=8
        ),
        "depthwise 3 x 3, some of it dilated, padding computed at each call",
    ),
    "efficientnet": Network(
        from_config(
            "EfficientNetForImageClassification",
            "EfficientNetConfig",
            image(48),
            width_coefficient=0.25,
            depth_coefficient=0.1,
            depth_divisor=4,
            hidden_dim=320,
        ),
        "depthwise 5 x 5 in a subclass without methods, asymmetric padding",
    ),
    "segformer": Network(
        from_config(
            "SegformerForSemanticSegmentation",
            "SegformerConfig",
            image(64),
            hidden_sizes=[8, 8, 16, 16],
            depths=[1, 1, 1, 1],
            num_attention_heads=[1, 1, 2, 2],
            decoder_hidden_size=16,
        ),
        "overlapping patches, sequence reduction, depthwise between linear layers",
    ),
    "poolformer": Network(
        from_config(
            "PoolFormerForImageClassification",
            "PoolFormerConfig",
            image(64),
            hidden_sizes=[8, 8, 16, 16],
            depths=[1, 1, 1, 1],
        ),
        "average pools that leave out the padding",
    ),
    "swin": Network(
        from_config(
            "SwinForImageClassification",
            "SwinConfig",
            image(32),
            image_size=32,
            embed_dim=8,
            depths=[1, 1],
            num_heads=[1, 2],
            window_size=4,
        ),
        "patches, a pool of sequences",
    ),
    "upernet": Network(
        from_config(
            "UperNetForSemanticSegmentation",
            "UperNetConfig",
            image(64),
            hidden_size=8,
            auxiliary_channels=8,
            auxiliary_in_channels=16,
            pool_scales=[1, 2, 3],
            backbone_config=nested(
                "ConvNextConfig",
                out_features=["stage1", "stage2", "stage3", "stage4"],
                layer_scale_init_value=0.5,
                **SMALL_STAGES,
            ),
        ),
        "adaptive pools of several sizes, a backbone inside of another model",
    ),
    "dpt": Network(
        from_config(
            "DPTForDepthEstimation",
            "DPTConfig",
            image(32),
            image_size=32,
            patch_size=8,
            backbone_out_indices=[0, 1, 2, 3],
            neck_hidden_sizes=[8, 8, 8, 8],
            fusion_hidden_size=8,
            **{**SMALL_VIT, "num_hidden_layers": 4},
        ),
        "transposed convolutions whose stride is their size, a residual decoder",
    ),
    "mobilevit": Network(
        from_config(
            "MobileViTForSemanticSegmentation",
            "MobileViTConfig",
            image(64),
            image_size=64,
            hidden_sizes=[16, 16, 16],
            neck_hidden_sizes=[8, 8, 16, 16, 16, 16, 32],
            num_attention_heads=2,
            aspp_out_channels=16,
            expand_ratio=2.0,
        ),
        "convolutions between transformers, atrous pyramid",
    ),
    "beit": Network(
        from_config(
            "BeitForSemanticSegmentation",
            "BeitConfig",
            image(32),
            image_size=32,
            patch_size=8,
            out_indices=[1, 2, 3, 4],
            pool_scales=[1, 2],
            **{**SMALL_VIT, "num_hidden_layers": 4},
        ),
        "a feature pyramid: transposed convolutions, and a max pool",
    ),
    "hgnet_v2": Network(
        from_config(
            "HGNetV2ForImageClassification",
            "HGNetV2Config",
            image(64),
            stem_channels=[3, 8, 8],
            stage_in_channels=[8, 16, 16, 32],
            stage_mid_channels=[8, 8, 16, 16],
            stage_out_channels=[16, 16, 32, 32],
            stage_num_blocks=[1, 1, 1, 1],
            stage_numb_of_layers=[1, 1, 1, 1],
            hidden_sizes=[16, 16, 32, 32],
            embedding_size=8,
        ),
        "2 x 2 windows after one-sided padding, a max pool of stride 1 with ceil_mode",
    ),
    "videomae": Network(
        from_config(
            "VideoMAEForVideoClassification",
            "VideoMAEConfig",
            video(4, 16),
            image_size=16,
            patch_size=8,
            num_frames=4,
            **SMALL_VIT,
        ),
        "three-dimensional patches",
    ),
    "emu3 encoder": Network(emu3_encoder, "three-dimensional convolutions after padding of one side"),
    "wav2vec2": Network(
        from_config(
            "Wav2Vec2Model",
            "Wav2Vec2Config",
            wave(2000),
            conv_dim=[8] * 7,
            num_conv_pos_embeddings=15,
            num_conv_pos_embedding_groups=2,
            mask_time_prob=0.0,
            **SMALL_VIT,
        ),
        "a waveform, stride 5, a grouped convolution whose weight is parametrized",
        asks=False,
    ),
    "whisper": Network(
        from_config(
            "WhisperForAudioClassification",
            "WhisperConfig",
            {"input_features": spectrogram(8, 40)["spectrogram"]},
            num_mel_bins=8,
            d_model=16,
            encoder_layers=1,
            encoder_attention_heads=2,
            encoder_ffn_dim=32,
            max_source_positions=20,
            classifier_proj_size=8,
        ),
        "one-dimensional, between transposed tensors",
    ),
    "encodec": Network(
        from_config(
            "EncodecModel",
            "EncodecConfig",
            wave(1280, channels=1),
            num_filters=4,
            hidden_size=16,
            codebook_dim=16,
            codebook_size=32,
            num_lstm_layers=1,
        ),
        "causal: dilated and transposed convolutions with normed weights, cut afterwards",
    ),
    "dac": Network(
        from_config(
            "DacModel",
            "DacConfig",
            wave(1024, channels=1),
            encoder_hidden_size=4,
            decoder_hidden_size=64,
            downsampling_ratios=[2, 4, 4],
            upsampling_ratios=[4, 4, 2],
            n_codebooks=2,
            codebook_size=32,
            codebook_dim=4,
        ),
        "dilations of 1, 3 and 9, transposed convolutions of odd stride",
    ),
    "hifigan": Network(
        from_config(
            "SpeechT5HifiGan",
            "SpeechT5HifiGanConfig",
            spectrogram(12, 20),
            model_in_dim=20,
            upsample_initial_channel=32,
            upsample_rates=[4, 4],
            upsample_kernel_sizes=[8, 8],
        ),
        "a vocoder: transposed convolutions and residual stacks of dilated ones",
    ),
    "univnet": Network(
        from_config(
            "UnivNetModel",
            "UnivNetConfig",
            {"input_features": spectrogram(8, 20)["spectrogram"], "noise_sequence": spectrogram(8, 16)["spectrogram"]},
            model_in_channels=16,
            model_hidden_channels=8,
            num_mel_bins=20,
            resblock_stride_sizes=[4, 2],
            resblock_kernel_sizes=[3, 3],
            resblock_dilation_sizes=[[1, 3], [1, 3]],
            kernel_predictor_hidden_channels=16,
        ),
        "a network that predicts kernels of other convolutions",
    ),
    "vits": Network(
        from_config(
            "VitsModel",
            "VitsConfig",
            {"input_ids": torch.arange(1, 13)[None]},
            vocab_size=38,
            hidden_size=16,
            num_hidden_layers=1,
            ffn_dim=16,
            num_attention_heads=2,
            flow_size=16,
            spectrogram_bins=20,
            upsample_initial_channel=32,
            upsample_rates=[4, 4],
            upsample_kernel_sizes=[8, 8],
            duration_predictor_filter_channels=16,
            wavenet_dilation_rate=2,
            use_stochastic_duration_prediction=False,
            speaking_rate=100.0,
            layerdrop=0.0,
        ),
        "speech: a flow of gated dilated convolutions",
    ),
    "mamba": Network(
        from_config(
            "MambaModel",
            "MambaConfig",
            {"input_ids": torch.arange(20).reshape(2, 10)},
            vocab_size=32,
            hidden_size=16,
            num_hidden_layers=2,
            state_size=4,
        ),
        "a depthwise layer whose weights go to a function of torch: the module is replaced and never called",
        functions=True,
    ),
    "sam": Network(
        from_config(
            "SamModel",
            "SamConfig",
            {**image(64, 1), "input_points": torch.tensor([[[[8.0, 9.0]]]])},
            vision_config=nested(
                "SamVisionConfig",
                image_size=64,
                patch_size=16,
                output_channels=16,
                num_pos_feats=8,
                window_size=2,
                global_attn_indexes=[1],
                **SMALL_VIT,
                mlp_dim=32,
            ),
            mask_decoder_config=nested(
                "SamMaskDecoderConfig", hidden_size=16, mlp_dim=16, num_attention_heads=2, iou_head_hidden_dim=16
            ),
            prompt_encoder_config=nested(
                "SamPromptEncoderConfig", hidden_size=16, image_size=64, image_embedding_size=4, mask_input_channels=4
            ),
        ),
        "segmentation from points: a neck without bias, transposed convolutions",
    ),
    "rt_detr": Network(
        from_config(
            "RTDetrResNetBackbone",
            "RTDetrResNetConfig",
            image(64),
            embedding_size=8,
            layer_type="basic",
            **SMALL_STAGES,
        ),
        "shortcuts that average with ceil_mode before a 1 x 1",
    ),
    "mobilenet_v3": Network(from_timm("mobilenetv3_small_050", 64), "hard activations, squeeze and excitation", "timm"),
    "ghostnet": Network(from_timm("ghostnet_050", 64), "depthwise convolutions of what was computed before", "timm"),
    "res2net": Network(
        from_timm("res2net50_14w_8s", 64, layers=(1, 1, 1, 1)),
        "groups of channels one after the other, average pools beside them",
        "timm",
    ),
    "diffusion": Network(
        from_diffusers(
            "UNet2DModel",
            {"sample": image(16)["pixel_values"], "timestep": torch.tensor([3, 40])},
            sample_size=16,
            layers_per_block=1,
            block_out_channels=(16, 32),
            norm_num_groups=8,
            down_block_types=("DownBlock2D", "AttnDownBlock2D"),
            up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        ),
        "a U-Net of diffusion, with upsampling before convolutions",
        "diffusers",
    ),
    "autoencoder": Network(
        from_diffusers(
            "AutoencoderKL",
            {"sample": image(32)["pixel_values"]},
            down_block_types=("DownEncoderBlock2D",) * 2,
            up_block_types=("UpDecoderBlock2D",) * 2,
            block_out_channels=(8, 16),
            norm_num_groups=4,
            layers_per_block=1,
        ),
        "of latent diffusion: padding of one side before a stride",
        "diffusers",
    ),
    "monai unet": Network(
        from_monai("UNet", (1, 1, 16, 16, 16), channels=(4, 8, 16), strides=(2, 2)),
        "a U-Net of volumes: three-dimensional transposed convolutions",
        "monai",
    ),
    "vnet": Network(from_monai("VNet", (2, 1, 32, 32)), "kernels of 5 x 5, what is passed on joined", "monai"),
    "attention": Network(
        from_monai("AttentionUnet", (2, 1, 32, 32), channels=(4, 8, 16), strides=(2, 2)),
        "gates on skip connections, transposed convolutions with a padding of their outputs",
        "monai",
    ),
}
