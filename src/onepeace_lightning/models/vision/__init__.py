"""The models of the released vision files: ImageNet, Kinetics, ADE20K and COCO, in plain PyTorch."""
