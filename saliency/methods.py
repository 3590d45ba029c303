"""Names of the saliency methods; this module imports nothing."""

CAM_METHODS = ("cam", "gradcam", "gradcam++", "hirescam", "layercam")
METHODS = (*CAM_METHODS, "fullgrad", "inputgrad", "smoothgrad", "integrated_gradients")

__all__ = ["CAM_METHODS", "METHODS"]
