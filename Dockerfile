# docker build -t onepeace .          docker run --gpus all -v $PWD:/work onepeace fit --config pretrain/toy --run runs/toy
FROM python:3.12-slim
RUN apt-get update && apt-get install --yes --no-install-recommends libsndfile1 && rm -rf /var/lib/apt/lists/*
WORKDIR /src
COPY pyproject.toml README.md LICENSE ./
COPY constraints ./constraints
COPY src ./src
COPY data_recipes ./data_recipes
COPY configs ./configs
RUN pip install --no-cache-dir -c constraints/tested.txt .
WORKDIR /work
ENTRYPOINT ["onepeace"]
