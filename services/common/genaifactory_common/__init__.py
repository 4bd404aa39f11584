"""What every service of GenAI Factory needs and none of them owns."""
