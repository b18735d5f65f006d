"""The bus door: aio-pika, with what it stands on, is here and nowhere else in the worker."""
