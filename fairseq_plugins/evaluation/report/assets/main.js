showSummary();
showTraining();
showTranslations();
showExplorer();
showMaking();
document.documentElement.dataset.ready = "true";
