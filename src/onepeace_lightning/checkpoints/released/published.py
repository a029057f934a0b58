"""Scores that the authors of ONE-PEACE have published (arXiv 2305.11172 and the README of its repository)."""

PUBLISHED = {
    "COCO": "R@1 image to text 84.1, text to image 65.4",
    "COCO zero-shot": "R@1 image to text 64.7, text to image 48.0",
    "Flickr30K": "R@1 image to text 97.6, text to image 89.6",
    "Flickr30K zero-shot": "R@1 image to text 90.9, text to image 77.2",
    "AudioCaps": "R@1 text to audio 42.5, audio to text 51.0",
    "Clotho": "R@1 text to audio 22.4, audio to text 27.1",
    "ESC-50 zero-shot": "accuracy 91.8",
    "FSD50K": "mAP 69.7",
    "VGGSound": "accuracy 59.6 (audio only)",
    "VGGSound-AV": "accuracy 68.2 (image and audio; no file of it was released)",
    "AVQA": "accuracy 86.2 (audio only)",
    "AVQA-AV": "accuracy 92.2 (image and audio; no file of it was released)",
    "VQAv2": "VQA accuracy test-dev 82.6, test-std 82.5",
    "NLVR2": "accuracy dev 87.8, test-P 88.3",
    "RefCOCO": "accuracy@0.5 val 92.58, testA 94.18, testB 89.26",
    "RefCOCO+": "accuracy@0.5 val 88.77, testA 92.21, testB 83.23",
    "RefCOCOg": "accuracy@0.5 val 89.22, test 89.27",
    "ImageNet-1k": "top-1 89.558 at 384 pixels, 89.752 at 512",
    "Kinetics-400": "top-1 88.0, top-5 97.8 (16 frames, every 8th); 88.1, 97.8 (32 frames, every 4th)",
    "ADE20K": "mIoU 62.0 single-scale, 62.98 multi-scale",
    "COCO detection": "val box AP 60.37, mask AP 52.85",
}
"""Data set to the published result, by the one file that it belongs to; "zero-shot" without fine-tuning."""
