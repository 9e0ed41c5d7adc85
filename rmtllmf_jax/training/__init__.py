"""Fine-tuning one model a task, and realigning a merged model on a few samples a class."""
