"""What methods and files of fine-tuning are called, without PyTorch, which the page need not wait for."""

METHODS = ("full", "lora")
# PEFT's own names for the files of a folder
LORA_CONFIG_NAME, LORA_WEIGHTS_NAME = "adapter_config.json", "adapter_model.safetensors"
