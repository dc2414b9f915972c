"""Any pair: a Hugging Face model and two GGUFs, whoever made them, judged on anybody's pictures."""
